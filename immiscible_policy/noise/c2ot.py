"""Conditional optimal transport: pairs that keep each condition's noise Gaussian, or nearly so (arXiv 2503.10636)."""

from __future__ import annotations

from immiscible_policy.noise.assignment import Assignment, ConditionCost
from immiscible_policy.noise.costs import ConditionName, DistanceName
from immiscible_policy.noise.schedule import Schedule


def c2ot(
    weight: float | None = None,
    ratio: float = 0.01,
    condition_cost: ConditionName = "cosine",
    cost: DistanceName = "sqeuclidean",
    pool: int = 1,
    start: int = 0,
    stop: int | None = None,
    ramp: int = 0,
) -> Assignment:
    """Pair a batch with its noises; exchanging noise between unlike conditions costs extra.

    Args:
        weight: Weight of the distance between conditions; None: the smallest that `ratio` allows; `inf`: only noises of
            equal conditions. Discrete conditions (integers, booleans) always stay apart.
        ratio: Share of the other samples' noises that may still be cheaper than a sample's own.
        condition_cost: `cosine` or `sqeuclidean`, for continuous conditions.
        cost: `sqeuclidean`, the paper's, or `euclidean`.
        pool: Noises drawn per sample.
        start: First training step with pairing.
        stop: First training step without it again; None for never.
        ramp: Steps over which the paired share of the batch rises and falls.
    """
    conditions = ConditionCost(weight, ratio, condition_cost)
    schedule = Schedule(start, stop, ramp)
    return Assignment(cost, conditions=conditions, pool=pool, schedule=schedule)
