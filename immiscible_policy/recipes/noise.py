"""From a run's noise options to the selector that chooses its noise, and what that does to the noise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.noise import SELECTORS, Selector, make_selector
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.audit import Audit, audit

WORTH_FITTING = 256_000
"""Samples paired over a training from which on fitting potentials takes less time than it saves."""


@dataclass(frozen=True)
class NoiseOptions:
    """The noise of a run, checked, its schedule in steps: a selector, and whether to fit it to the data."""

    select: Selector
    fit: bool

    def memory(self, batch_size: int, numbers: int) -> int:
        """Bytes that choosing the noise of a batch takes, as far as the selector knows."""
        needs = getattr(self.select, "memory", None)
        return 0 if needs is None else needs(batch_size, numbers)

    @torch.no_grad()
    def build(self, samples: Tensor) -> Selector:
        """The selector, fitted to all clean samples (N, ...) of the training, as it will see them."""
        fitted = getattr(self.select, "fitted", None)
        return fitted(samples) if fitted is not None and self.fit else self.select


def noise_options(
    noise: Mapping[str, Any], *, steps: int, batch_size: int, steps_per_epoch: float, select_over: int = 1
) -> NoiseOptions:
    """Check a run's noise, `name` and options as configured, and turn epochs into steps.

    The `batch_size` samples whose noise is chosen together are those of `select_over` steps, of which a schedule sees
    the first.

    Raises ValueError if an option is unusable, or nothing would ever be selected.
    """
    options = {key: _in_steps(value, steps_per_epoch) for key, value in noise.items() if key != "name"}
    fit = options.pop("potentials", True)
    if fit not in (True, False, "auto"):
        raise ValueError(f"potentials={fit}: use auto, true or false")
    select = make_selector(noise["name"], **options)
    schedule = getattr(select, "schedule", None)
    if schedule is not None:
        given = " ".join(f"{key}={noise[key]}" for key in ("start", "stop", "ramp") if noise.get(key))
        steps -= (steps - 1) % select_over  # the last that a schedule sees, and those before it
        if schedule.start >= steps:
            late = f"would first select at step {schedule.start:,} of steps={steps}"
            raise ValueError(f"{given}: noise={noise['name']} {late}; give an earlier start= or more steps=")
        highest, k = schedule.highest(steps), getattr(select, "k", None)
        needed = 2 if isinstance(select, Assignment) else 1  # of the samples, or of the other candidates
        chosen = round(highest * (batch_size if k is None else k - 1))
        if k != 1 and chosen < needed:
            reach = f"its strength reaches {highest:.2g}"
            raise ValueError(f"{given}: noise={noise['name']} would never select, {reach}; shorten ramp=")
    paired = (steps - (schedule.start if schedule else 0)) * batch_size
    return NoiseOptions(select, paired >= WORTH_FITTING if fit == "auto" else fit)


def require_noise(select: Selector, name: str, shape: Sequence[int]) -> None:
    """Call a selector from elsewhere once, on 8 made-up samples of a shape; a ValueError if it returns no noise.

    What broadcasts would train without a word: one noise for every sample of a batch.
    """
    if name in SELECTORS:
        return
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(8, *shape, generator=generator), torch.randn(8, 2, generator=generator)
    noise = select(x, condition=condition, step=0, generator=generator)
    returned = f"{tuple(noise.shape)} {noise.dtype}" if isinstance(noise, Tensor) else type(noise).__name__
    if returned != f"{tuple(x.shape)} {x.dtype}":
        raise ValueError(f"noise={name} returned {returned} for samples {tuple(x.shape)} {x.dtype}; return the same")
    if not noise.isfinite().all():
        raise ValueError(f"noise={name} returned numbers that are not finite; return noise")


def _in_steps(value: Any, steps_per_epoch: float) -> Any:
    """Training steps where epochs are written as 50ep; anything else as it is."""
    epochs = re.fullmatch(r"(\d+(?:\.\d+)?)ep", value) if isinstance(value, str) else None
    return round(float(epochs[1]) * steps_per_epoch) if epochs else value


def actions_compared(windows: Windows, exclude: str, layout: Layout) -> Tensor | None:
    """Which actions of each window enter the selection's distance (N, T), or None for all.

    What is excluded: `none`, `padding`, or `unexecuted` (padding, and steps that the robot never executes).
    """
    if exclude != "unexecuted":
        return None if exclude == "none" else windows.real
    executed = torch.zeros_like(windows.real[0])
    executed[layout.executed] = True
    return windows.real & executed


def diffusion_levels(text: str, chain: int) -> range | None:
    """Read the diffusion steps at which the chosen noise is used: `all` (None), or a range such as `50..99`."""
    if text == "all":
        return None
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not ends or not int(ends[1]) <= int(ends[2]) < chain:
        example = f"0..{chain // 2 - 1} (0 to {chain - 1} are there)"
        raise ValueError(f"select_at={text}: write all, or diffusion steps such as {example}")
    return range(int(ends[1]), int(ends[2]) + 1)


@torch.no_grad()
def noise_audit(objective: Any, step: int, batches: int) -> Audit:
    """What an objective's selector does to the noise of its next batches, from a step on.

    Distance and correlation are those to what it selects for: the residuals, where these are asked for.
    """
    seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def watch(x: Tensor, *, condition: Tensor | None = None, mask: Tensor | None = None, **others: Any) -> Tensor:
        seen.append((x, condition, mask))
        return torch.zeros_like(x)

    watched = replace(objective, select=watch)
    for later in range(batches):
        watched.batches(step + later)
    x = torch.cat([clean for clean, _, _ in seen])
    condition, mask = (None if part[0] is None else torch.cat(part) for part in list(zip(*seen, strict=True))[1:])
    sizes: dict[str, Any] = {"batch_size": watched.order.batch_size, "batches": max(2, len(seen))}
    return audit(objective.select, x, condition=condition, mask=mask, step=step, **sizes)
