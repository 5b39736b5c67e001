r"""When a selector selects: from an activation step, gradually or at once, and for how long.

    strength   1 |          ________________
                 |         /                \
               0 |________/                  \______  step
                        start              stop
                         <ramp>          <ramp>

At strength 0 the noise is vanilla; what a strength between 0 and 1 means is the selector's own (fewer candidates, a
smaller share of the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.inputs import is_whole


def spread(count: int, total: int, device: torch.device | None = None) -> Tensor:
    """So many of the numbers 0..total-1, evenly spread and increasing, int64: those of a batch that are selected for.

    Batches that are chosen together, or originals and their mirror images, then have equal shares.
    """
    return torch.arange(count, device=device) * total // max(count, 1)


@dataclass(frozen=True)
class Schedule:
    """Strength of the selection as a function of the training step.

    Raises:
        ValueError: If a number is negative or there is nothing between start and stop.
    """

    start: int = 0  # first step with selection (late in arXiv 2610.09369)
    stop: int | None = None  # first step without it again; None for never
    ramp: int = 0  # steps over which the strength rises linearly after `start`, and falls before `stop`

    def __post_init__(self) -> None:
        for name in ("start", "stop", "ramp"):
            value = getattr(self, name)
            if (value is not None or name != "stop") and not (is_whole(value) and value >= 0):
                raise ValueError(f"{name}={value}: needs training steps (500), or on the command line epochs (50ep)")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop={self.stop}: must come after start={self.start}, or nothing is selected")

    def highest(self, steps: int) -> float:
        """The highest strength that a training of so many steps reaches."""
        last = steps - 1 if self.stop is None else min(steps, self.stop) - 1
        middle = last if self.stop is None else min(last, (self.start + self.stop - 1) // 2)
        return max(self.strength(middle), self.strength(last))

    def strength(self, step: int | None) -> float:
        """How strongly to select at a training step, 0 to 1.

        Raises:
            ValueError: If the strength depends on the step and there is none.
        """
        if self == Schedule():
            return 1.0
        if step is None:
            raise ValueError(f"step is missing: selection with {self} depends on it; call select(x, step=...)")
        if step < self.start or (self.stop is not None and step >= self.stop):
            return 0.0
        risen = (step - self.start + 1) / (self.ramp + 1)
        fallen = (self.stop - step) / (self.ramp + 1) if self.stop is not None else 1.0
        return min(1.0, risen, fallen)
