"""Linear assignment: the least total distance, unsquared (Immiscible Diffusion, arXiv 2406.12303)."""

from __future__ import annotations

from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.costs import DistanceName
from immiscible_policy.noise.potentials import Potentials
from immiscible_policy.noise.schedule import Schedule


def linear(
    cost: DistanceName = "euclidean",
    pool: int = 1,
    potentials: Potentials | None = None,
    start: int = 0,
    stop: int | None = None,
    ramp: int = 0,
) -> Assignment:
    """Pair a batch with its noises.

    Args:
        cost: `euclidean` or `sqeuclidean`.
        pool: Noises drawn per sample.
        potentials: From `fit_potentials`: same pairs, faster.
        start: First training step with pairing.
        stop: First training step without it again; None for never.
        ramp: Steps over which the paired share of the batch rises and falls.
    """
    return Assignment(cost, pool=pool, potentials=potentials, schedule=Schedule(start, stop, ramp))
