"""Which way round a rollout turned the T: starts from which both ways are as long, and how the modes are shared out.

On the axis of the goal T stand agent and block, the block upside down (goal angle + pi). The scene is its own mirror
image, so half a turn clockwise and half a turn counter-clockwise are equally good::

       goal             start
    +---------+         +---+         the axis runs through both stems; drawn upright here
    +--+   +--+         |   |
       |   |            |   |         y points down, so a positive angle turns clockwise on the screen
       |   |         +--+   +--+
       +---+         +---------+
                          o  agent

A policy that kept what mirrored demonstrations show turns either way half of the time (Immiscible Diffusion Policy,
arXiv 2610.09369). The walls stand half a pixel beside the axis (`demos.mirror`); nothing else in the task
tells the ways apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from immiscible_envs.geometry import GOAL_POSE
from immiscible_policy.demos.store import Demonstrations

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

MODES = ("clockwise", "counter-clockwise", "undecided")
CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED = range(3)
DECIDED_AT = math.pi / 2
"""Net turn [rad] from which on a rollout has a mode: half of the turn that the task asks for."""
NEARBY = math.pi / 6
"""A demonstration that begins this near to upside down [rad] is one of the symmetric situation."""

PLACES = (
    (180.0, 90.0),
    (-120.0, 90.0),
    (270.0, 180.0),
    (-220.0, -30.0),
)
"""Agent and block of each start: px along the axis from the goal's origin towards the end of its stem. The
centre of gravity of the block is on the goal's, on it again, 90 px beyond, and 120 px before."""


def symmetric_starts(goal: Sequence[float] = GOAL_POSE) -> Array:
    """The starts that are their own mirror image about the goal's axis.

    Args:
        goal: Goal pose (3,): x, y [px], angle [rad].

    Returns:
        States (4, 5): agent x, y, block x, y [px], block angle in [0, 2 pi) [rad]; the agent touches nothing.
    """
    x, y, angle = goal
    axis = np.array([-math.sin(angle), math.cos(angle)])
    points = np.array([x, y]) + np.array(PLACES)[..., None] * axis  # (N, 2, 2)
    turned = np.full((len(points), 1), (angle + math.pi) % (2 * math.pi))
    return np.concatenate([points.reshape(-1, 4), turned], axis=1)


def turned(angles: ArrayLike) -> Array:
    """How far a block has turned since the first step, whole turns counted, whatever multiple of 2 pi was recorded.

    Args:
        angles: Block angles (T, ...) [rad], T >= 1, less than half a turn apart from step to step.

    Returns:
        Turns (T, ...) [rad], positive clockwise on the screen.
    """
    continuous = np.unwrap(np.asarray(angles, dtype=np.float64), axis=0)
    return continuous - continuous[0]


def classify(angles: ArrayLike) -> Counts:
    """Mode of each rollout: the direction of its net turn, undecided below `DECIDED_AT`.

    Only first and last count: who turns a little one way, comes back and goes round the other has the other's mode.

    Args:
        angles: Block angles (T, ...) [rad] up to success or the episode's end.

    Returns:
        Modes (...), numbers into `MODES`.
    """
    turn = turned(angles)[-1]
    return np.where(np.abs(turn) < DECIDED_AT, UNDECIDED, np.where(turn > 0, CLOCKWISE, COUNTER_CLOCKWISE))


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
    angles = [demos.state[episode, 4] for episode in demos.episodes]
    off = np.array([each[0] for each in angles], dtype=np.float64) - goal[2]
    near = np.cos(off) <= -math.cos(NEARBY)
    return count_modes([int(classify(each)) for each, is_near in zip(angles, near, strict=True) if is_near])


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
