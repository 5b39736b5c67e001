"""Vanilla noise: independent of the sample, as in ordinary diffusion training (the baseline of every comparison)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.inputs import check, draw, flatten, require_finite


@dataclass(frozen=True)
class Vanilla:
    """`torch.randn` of the sample's shape."""

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
        """Draw noise for x (B, ...); `condition`, `mask` and `step` do not matter here."""
        check(x, condition, mask)
        return require_finite(x, draw(x, generator), torch.linalg.vector_norm(flatten(x, mask)[0], dim=1))

    def divergence(self, batch_size: int) -> float:
        """E KL(q(e|x) || N(0, I)) in nats."""
        return 0.0
