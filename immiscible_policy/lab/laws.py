"""What KNN noise does, in closed form: the law of the nearest of k noises depends on ||x|| and D alone.

With e ~ N(0, I_D) and r = ||x||, t = ||x - e||^2 is noncentral chi-squared with D degrees of freedom and
noncentrality r^2; p_D is its density, S its survival function. Nearest of k has density k S^(k-1) p_D. The part z of
e along x / ||x|| follows from the derivative of p_D by r:

    E[z | t] = r (1 - p_(D+2)(t) / p_D(t)),     ||e||^2 = t + 2 r z - r^2,

so every mean below is an integral over the distance alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import ncx2
from torch import Tensor

GRID = 1000  # Points of the integral over the distance


class Nearest(NamedTuple):
    """Means of the nearest of k noises to a sample x."""

    distance: float  # ||x - e||
    projection: float  # the part of e along x / ||x||
    squared_norm: float  # ||e||^2; D without selection


def nearest_of_k(r: float, dims: int, k: int) -> Nearest:
    """The means of KNN noise for a sample of length r = ||x|| in `dims` dimensions; k = 1 is vanilla noise."""
    mean, spread = dims + r**2, np.sqrt(2 * dims + 4 * r**2)  # of t
    low, high = (max(mean + side * spread, 1e-12) ** 0.5 for side in (-9, 14))
    distance = np.linspace(low, high, GRID)
    t = distance**2
    survival = ncx2.sf(t, dims, r**2)
    slope = ncx2.pdf(t, dims, r**2) - ncx2.pdf(t, dims + 2, r**2)
    projection = r * np.trapezoid(k * survival ** (k - 1) * slope * 2 * distance, distance)
    mean_t = t[0] + np.trapezoid(survival**k * 2 * distance, distance)
    return Nearest(
        distance=float(distance[0] + np.trapezoid(survival**k, distance)),
        projection=float(projection),
        squared_norm=float(mean_t + 2 * r * projection - r**2),
    )


def nearest_over(x: Tensor, k: int, lengths: int = 24) -> list[Nearest]:
    """The means for every sample of a batch (B, ...).

    Of more samples than `lengths`, so many lengths from the shortest to the longest are integrated and the others
    interpolated linearly.
    """
    r = x.flatten(1).norm(dim=1).double().numpy()  # (B,)
    grid = np.unique(r) if len(r) <= lengths else np.linspace(r.min(), r.max(), lengths)
    known = np.array([nearest_of_k(length, x[0].numel(), k) for length in grid])  # (lengths, 3)
    means = [np.interp(r, grid, column) for column in known.T]
    return [Nearest(*(float(value) for value in row)) for row in zip(*means, strict=True)]


def expected_change(x: Tensor, k: int) -> float:
    """Expected change of the mean distance ||x - e|| under KNN noise against vanilla noise [%]."""
    vanilla, nearest = (np.mean([law.distance for law in nearest_over(x, n)]) for n in (1, k))
    return float(100 * (nearest / vanilla - 1))
