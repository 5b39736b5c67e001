"""Mixtures in the plane, and what can be measured there: modes, crossings, curvature, distance to the data.

Shape legend: N points, K modes, C conditions, S points along a path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

REACH = 4.0  # Standard deviations from a mode's centre within which points are on it (99.97% of the data are)


@dataclass(frozen=True)
class Mixture:
    """Round Gaussian modes in the plane."""

    centres: Tensor  # (K, 2)
    shares: Tensor  # probability of each mode (K,), summing to 1
    std: float  # of a mode, in each direction
    conditions: Tensor | None = None  # of conditional data: the condition (0 .. C-1) of each mode (K,)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (N, 2) and the modes (N,) they come from."""
        modes = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        return self.around(modes, generator), modes

    def around(self, modes: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point (N, 2) from each of the modes (N,)."""
        return self.centres[modes] + self.std * torch.randn(len(modes), 2, generator=generator)

    def apportioned(self, n: int) -> Tensor:
        """Modes (N,) in exactly the mixture's shares, up to rounding."""
        ends = (self.shares.double().cumsum(0) * n).round().long()
        return torch.bucketize(torch.arange(n), ends, right=True).clamp_max(len(self.shares) - 1)

    def classify(self, points: Tensor) -> Tensor:
        """The mode that each point (N, 2) is on (N,), or K where it is on none."""
        distances, modes = torch.cdist(points, self.centres).min(dim=1)
        return torch.where(distances <= REACH * self.std, modes, len(self.centres))

    def mode_shares(self, points: Tensor) -> Tensor:
        """Share of the points on each mode and, last, on none (K + 1,); they sum to 1."""
        return torch.bincount(self.classify(points), minlength=len(self.centres) + 1) / len(points)

    def total_variation(self, points: Tensor) -> float:
        """Total variation between the points' mode shares and the mixture's: 0 perfect, 1 all on no mode."""
        wanted = torch.cat([self.shares, self.shares.new_zeros(1)])
        return float((self.mode_shares(points) - wanted).abs().sum() / 2)

    def one_hot(self, modes: Tensor) -> Tensor:
        """Conditions of points from these modes (N, C); C is 0 for unconditional data."""
        if self.conditions is None:
            return self.centres.new_zeros(len(modes), 0)
        return torch.nn.functional.one_hot(self.conditions[modes], int(self.conditions.max()) + 1).float()

    def given(self, condition: int) -> Mixture:
        """The mixture of one condition's modes; ValueError if there is no such condition."""
        if self.conditions is None or not (self.conditions == condition).any():
            raise ValueError(f"condition={condition}: no mode of this mixture belongs to it")
        own = self.conditions == condition
        return Mixture(self.centres[own], self.shares[own] / self.shares[own].sum(), self.std)


def ring(shares: list[float], *, radius: float, std: float, conditions: list[int] | None = None) -> Mixture:
    """Modes evenly around a circle, the first at the top, then anticlockwise."""
    angles = math.pi / 2 + torch.arange(len(shares)) * (2 * math.pi / len(shares))
    centres = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return Mixture(centres, torch.tensor(shares), std, None if conditions is None else torch.tensor(conditions))


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Exact Wasserstein-1 distance between sets of N points (N, 2), the mean way; ValueError for unequal sizes."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} points: the sets must be of one size")
    distances = torch.cdist(a.double(), b.double())
    rows, columns = linear_sum_assignment(distances.numpy())
    return float(distances[rows, columns].mean())


def curvature(paths: Tensor) -> float:
    """Mean length of paths (S, N, 2) over the mean distance of their ends, minus 1; 0 for straight ones."""
    length = (paths[1:] - paths[:-1]).norm(dim=2).sum(dim=0).mean()
    return float(length / (paths[-1] - paths[0]).norm(dim=1).mean() - 1)


def crossings(starts: Tensor, ends: Tensor) -> float:
    """Share of the pairs of segments, from starts (N, 2) to ends (N, 2), that cross.

    An assignment of least total Euclidean distance has none: swapping the ends of two that cross shortens both.
    """
    first, second = torch.triu_indices(len(starts), len(starts), offset=1)
    a, b, c, d = starts[first], ends[first], starts[second], ends[second]

    def side(a: Tensor, b: Tensor, point: Tensor) -> Tensor:  # positive left of the line from a to b
        ab, ap = (b - a).double(), (point - a).double()
        return ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]

    apart = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return float(apart.double().mean())


def mixing(noise: Tensor, modes: Tensor) -> float:
    """Share of the noises (N, 2) whose nearest other noise is paired with another mode: 0 sorted, most when mixed."""
    distances = torch.cdist(noise, noise).fill_diagonal_(math.inf)
    return float((modes[distances.argmin(dim=1)] != modes).double().mean())
