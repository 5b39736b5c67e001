"""How modes are shared out among rollouts: counts, shares, and what pure chance would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from immiscible_envs.geometry import GOAL_POSE
from immiscible_envs.modes import MODES, UNDECIDED, begins_upside_down, classify
from immiscible_policy.demos.store import Demonstrations

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def count_modes(modes: ArrayLike) -> Counts:
    """How many rollouts have each mode.

    Args:
        modes: Modes (..., R).

    Returns:
        Counts (..., 3) in the order of `MODES`.
    """
    return np.sum(np.asarray(modes)[..., None] == np.arange(len(MODES)), axis=-2)


def demonstrated_modes(demos: Demonstrations, goal: Sequence[float] = GOAL_POSE) -> Counts:
    """What demonstrations do that begin with the block within `NEARBY` of upside down, wherever it lies.

    Args:
        demos: The demonstrations.
        goal: Goal pose (3,): x, y [px], angle [rad].

    Returns:
        Counts (3,) in the order of `MODES`; all 0 where none begins there.
    """
    angles = [demos["state"][episode, 4] for episode in demos.episodes]
    return count_modes([int(classify(path)) for path in angles if begins_upside_down(path, goal)])


def total_variation(counts: ArrayLike, reference: ArrayLike) -> Array:
    """Total-variation distance between shares of modes, 1/2 sum |p - q| over all three: 0 alike, 1 disjoint.

    Undecided is a mode like the others here: a policy that gets stuck does not do what was demonstrated.

    Args:
        counts: Counts (..., 3), at least one rollout each.
        reference: Counts (3,) of the demonstrations.

    Returns:
        Distances (...).
    """
    return 0.5 * np.abs(shares(counts) - shares(reference)).sum(-1)


def total_variation_floor(reference: ArrayLike, draws: int) -> float:
    """Expected distance of `draws` independent draws from the very demonstrations they are compared with.

    Exact: the count of mode i is binomial(draws, q_i), and expectations add up.

    Args:
        reference: Counts (3,) of the demonstrations.
        draws: Rollouts per distance.
    """
    outcomes = np.arange(draws + 1)
    q = shares(reference)[:, None]
    return float(0.5 * np.sum(stats.binom.pmf(outcomes, draws, q) * np.abs(outcomes / draws - q)))


def majority(counts: ArrayLike) -> Array:
    """Share of the decided rollouts that took their start's more frequent direction: 1/2 balanced, 1 one way only.

    Args:
        counts: Counts (..., starts, 3).

    Returns:
        sum over starts of max(clockwise, counter-clockwise) over the number decided (...); NaN where none is.
    """
    decided = np.asarray(counts)[..., :UNDECIDED]
    with np.errstate(invalid="ignore"):
        return decided.max(-1).sum(-1) / decided.sum((-2, -1))


def majority_floor(counts: ArrayLike) -> Array:
    """What `majority` would be on average if each decided rollout tossed a fair coin.

    Args:
        counts: Counts (..., starts, 3).

    Returns:
        Expected shares (...); NaN where no rollout is decided.
    """
    decided = np.asarray(counts)[..., :UNDECIDED].sum(-1)
    expected = np.vectorize(_expected_majority, otypes=[float])(decided)
    with np.errstate(invalid="ignore"):
        return expected.sum(-1) / decided.sum(-1)


def shares(counts: ArrayLike) -> Array:
    """Counts (..., 3) as shares of their sum.

    Raises:
        ValueError: If there is nothing to share out.
    """
    counted = np.asarray(counts, dtype=np.float64)
    total = counted.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError(f"counts of modes {counted.tolist()}: each needs at least one rollout")
    return counted / total


def _expected_majority(n: int) -> float:
    """E max(X, n - X) of n fair coins."""
    outcomes = np.arange(n + 1)
    return float(stats.binom.pmf(outcomes, n, 0.5) @ np.maximum(outcomes, n - outcomes))
