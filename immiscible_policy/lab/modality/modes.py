"""How modes are shared out among rollouts: counts, shares, and what pure chance would give.

Counts (..., K) are of K - 1 modes and, last, of rollouts that took none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from immiscible_policy.demos.store import Demonstrations
from immiscible_policy.tasks import Modes, Task

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def count_modes(modes: ArrayLike, kinds: int) -> Counts:
    """How many of the rollouts (..., R) have each of the modes 0 to kinds - 1: (..., kinds)."""
    return np.sum(np.asarray(modes)[..., None] == np.arange(kinds), axis=-2)


def demonstrated_modes(task: Task, modes: Modes, demos: Demonstrations) -> Counts:
    """Modes (K,) of the demonstrations that begin in the benchmark's situation; all 0 where none does."""
    scenes = task.recorded_scenes(demos)
    episodes = [scenes[steps] for steps in demos.episodes]
    return count_modes([modes.classify(episode) for episode in episodes if modes.is_alike(episode)], len(modes.names))


def total_variation(counts: ArrayLike, reference: ArrayLike) -> Array:
    """Total-variation distance (...) between shares, 1/2 sum |p - q| over all K: 0 alike, 1 disjoint.

    Taking no mode counts as a mode: a policy that gets stuck does not do what was demonstrated. Counts (..., K) have
    at least one rollout each; the reference counts (K,) are those of the demonstrations.
    """
    return 0.5 * np.abs(shares(counts) - shares(reference)).sum(-1)


def total_variation_floor(reference: ArrayLike, draws: int) -> float:
    """Expected distance of independent draws from the demonstrations (K,) that they are compared with.

    Exact: the count of mode i is binomial(draws, q_i), and expectations add up.
    """
    outcomes = np.arange(draws + 1)
    q = shares(reference)[:, None]
    return float(0.5 * np.sum(stats.binom.pmf(outcomes, draws, q) * np.abs(outcomes / draws - q)))


def majority(counts: ArrayLike) -> Array:
    """Share of the decided rollouts that took their start's most frequent mode: 1/(K - 1) balanced, 1 one mode only.

    From counts (..., starts, K): the largest counts, summed over starts, over the number decided (...); NaN for none.
    """
    decided = np.asarray(counts)[..., :-1]
    with np.errstate(invalid="ignore"):
        return decided.max(-1).sum(-1) / decided.sum((-2, -1))


def majority_floor(counts: ArrayLike) -> Array:
    """Expected `majority` (...) of counts (..., starts, 3) if each decided rollout tossed a fair coin; NaN for none."""

    def expected(n: int) -> float:  # E max(X, n - X) of n fair coins
        outcomes = np.arange(n + 1)
        return float(stats.binom.pmf(outcomes, n, 0.5) @ np.maximum(outcomes, n - outcomes))

    decided = np.asarray(counts)[..., :-1].sum(-1)
    with np.errstate(invalid="ignore"):
        return np.vectorize(expected, otypes=[float])(decided).sum(-1) / decided.sum(-1)


def shares(counts: ArrayLike) -> Array:
    """Counts (..., K) as shares of their sum; ValueError if there is nothing to share out."""
    counted = np.asarray(counts, dtype=np.float64)
    total = counted.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError(f"counts of modes {counted.tolist()}: each needs at least one rollout")
    return counted / total
