"""Immiscible Diffusion Policy (2026): linear assignment to actions standardised over the batch (arXiv 2610.09369)."""

from __future__ import annotations

from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.costs import DistanceName
from immiscible_policy.noise.potentials import Potentials
from immiscible_policy.noise.schedule import Schedule


def idp26(
    cost: DistanceName = "euclidean",
    pool: int = 1,
    potentials: Potentials | None = None,
    start: int = 0,
    stop: int | None = None,
    ramp: int = 0,
) -> Assignment:
    """Pair a batch with its noises, by distances to standardised samples.

    Args:
        cost: `euclidean` or `sqeuclidean`.
        pool: Noises drawn per sample.
        potentials: From `fit_potentials` for standardised samples: same pairs, faster.
        start: First training step with pairing; the paper begins at epoch 50.
        stop: First training step without it again; None for never.
        ramp: Steps over which the paired share of the batch rises and falls.
    """
    schedule = Schedule(start, stop, ramp)
    return Assignment(cost, standardized=True, pool=pool, potentials=potentials, schedule=schedule)
