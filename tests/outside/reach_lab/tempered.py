"""Noise drawn from k candidates, nearer ones more often: KNN at a temperature."""

from __future__ import annotations

import torch
from torch import Tensor


class Tempered:
    """Chooses among k candidates with probabilities softmax(-distance^2 / (2 temperature)).

    Args:
        temperature: 0.01 is nearly KNN, 1000 nearly vanilla.
        k: Candidates.
    """

    def __init__(self, temperature: float = 1.0, k: int = 2) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: needs a number above 0")
        self.temperature, self.k = temperature, k

    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose noise for x (B, ...)."""
        noise = torch.randn((self.k, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
        far = (noise - x).flatten(2).square().sum(-1)  # (k, B)
        weight = torch.softmax(-far / (2 * self.temperature), dim=0)
        chosen = torch.multinomial(weight.T, 1, generator=generator)[:, 0]  # (B,)
        return noise[chosen, torch.arange(len(x), device=x.device)]
