"""Assignment noise: pair a batch with its noises at the least total distance (Immiscible Diffusion, arXiv 2406.12303).

A selector here is a cost times a solver; `linear` is the papers' choice: Euclidean distance, exact solver.

Shape legend: B samples, D numbers per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_policy.noise.inputs import check, draw, flatten, require_finite


@dataclass(frozen=True)
class Assignment:
    """The permutation of the batch's own noise that is nearest to its samples.

    The noise of the batch stays exactly Gaussian: it is `torch.randn(x.shape, generator=g)`, reordered.

    Attributes:
        cost: `euclidean`, the papers' distance; `sqeuclidean` gives other pairs (optimal transport's usual cost).

    Raises:
        ValueError: If the cost is unknown.
    """

    cost: Literal["euclidean", "sqeuclidean"] = "euclidean"

    def __post_init__(self) -> None:
        if self.cost not in ("euclidean", "sqeuclidean"):
            raise ValueError(f"cost={self.cost}: assignment knows euclidean and sqeuclidean")

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
        """Draw noise for x (B, ...) and give each sample the noise that the optimal assignment pairs it with.

        Args:
            x: Clean samples, any floating-point dtype; distances are measured in at least float32.
            condition: Not used by this cost.
            mask: Boolean, broadcasts to x; only numbers where it is True enter the distance.
            step: Not needed: the cost is constant.
            generator: Source of randomness.

        Raises:
            ValueError: For unusable x, condition or mask.
        """
        check(x, condition, mask)
        noise = draw(x, generator)
        flat, counts = flatten(x, mask)
        costs = squared_distances(flat, noise.flatten(1).to(flat.dtype), counts)
        costs = (costs.sqrt() if self.cost == "euclidean" else costs).cpu()
        noise = require_finite(x, noise, costs.sum(dim=1))
        return noise[solve(costs).to(noise.device)]


def squared_distances(x: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distances (B, B) between samples x (B, D) and noises (B, D); never materialises (B, B, D).

    Args:
        x: Samples (B, D), zero where masked out.
        noise: Noises (B, D).
        mask: Numbers of each sample that count (B, D), or None for all.
    """
    with torch.autocast(x.device.type, enabled=False):  # half precision would pair wrongly
        lengths = noise.square()
        noise_term = lengths.sum(dim=1) if mask is None else mask.to(x.dtype) @ lengths.T
        return (x.square().sum(dim=1, keepdim=True) + noise_term - 2 * x @ noise.T).clamp_min(0)


def solve(costs: Tensor) -> Tensor:
    """Solve the assignment exactly: for each row of costs (B, B), on the CPU, its column (B,), a permutation."""
    _, columns = linear_sum_assignment(costs.numpy())
    return torch.from_numpy(columns)
