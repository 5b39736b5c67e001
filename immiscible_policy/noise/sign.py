"""Sign noise: of a noise and its mirror image, keep the one on the sample's side.

The noise e of a sample x has the density 2 N(e; 0, I) where <e, x> > 0, and none elsewhere: KL(q(e|x) || N) = log 2
exactly, whatever x. Its length keeps its law. Over samples whose directions are as often u as -u the noise is exactly
N(0, I) again, so all of log 2 is information about the sample; given a condition too, if the same holds given it. The
residuals of a good prediction come near that (`ForResidual`), demonstrated actions themselves do not.

Shape legend: B samples, D numbers per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.inputs import check, draw, flatten, require_finite
from immiscible_policy.noise.schedule import Schedule, spread


@dataclass(frozen=True)
class Sign:
    """Plain noise, mirrored where its inner product with the sample is negative.

    While the schedule's strength s is below 1, round(s * B) samples, evenly spread over the batch, are treated so and
    the others keep vanilla noise.

    Attributes:
        start: First training step with selection.
        stop: First training step without it again; None for never.
        ramp: Steps over which the share of the batch that is treated rises and falls.

    Raises:
        ValueError: If the schedule is empty.
    """

    start: int = 0
    stop: int | None = None
    ramp: int = 0

    def __post_init__(self) -> None:
        self.schedule  # noqa: B018, refuses what is unusable

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise for x (B, ...) and turn each sample's to its side, whatever its condition."""
        check(x, condition, mask)
        flat, _ = flatten(x, mask)
        noise = draw(x, generator)
        away = (noise.flatten(1).to(flat.dtype) * flat).sum(dim=1) < 0  # (B,)
        treated = torch.zeros_like(away)
        treated[spread(round(self.schedule.strength(step) * len(x)), len(x), x.device)] = True
        away &= treated
        turned = torch.where(away.reshape(-1, *[1] * (x.ndim - 1)), -noise, noise)
        return require_finite(x, turned, torch.linalg.vector_norm(flat, dim=1))

    def divergence(self, batch_size: int) -> float:
        """E KL(q(e|x) || N(0, I)) in nats: the density is doubled on one side."""
        return math.log(2)

    @property
    def schedule(self) -> Schedule:
        """When to select."""
        return Schedule(self.start, self.stop, self.ramp)
