"""Which way round an episode turned the T, and starts from which both ways are as long.

On the axis of the goal T stand agent and block, the block upside down (goal angle + pi). The scene is its own mirror
image, so half a turn clockwise and half a turn counter-clockwise are equally good::

       goal             start
    +---------+         +---+         the axis runs through both stems; drawn upright here
    +--+   +--+         |   |
       |   |            |   |         y points down, so a positive angle turns clockwise on the screen
       |   |         +--+   +--+
       +---+         +---------+
                          o  agent

The walls stand half a pixel beside the axis; nothing else in the task tells the ways apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from immiscible_envs.geometry import GOAL_POSE, Array

MODES = ("clockwise", "counter-clockwise", "undecided")
CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED = range(3)
DECIDED_AT = math.pi / 2  # net turn [rad] from which on an episode has a mode: half of what the task asks for
NEARBY = math.pi / 6  # an episode that begins this near to upside down [rad] begins in the symmetric situation
PLACES = ((180.0, 90.0), (-120.0, 90.0), (270.0, 180.0), (-220.0, -30.0))
"""Agent and block of each start: px along the axis from the goal's origin towards the end of its stem. The
centre of gravity of the block is on the goal's, on it again, 90 px beyond, and 120 px before."""


def symmetric_starts(goal: Sequence[float] = GOAL_POSE) -> Array:
    """The starts (4, 5) that are their own mirror image about the axis of the goal (3,); the agent touches nothing."""
    x, y, angle = goal
    axis = np.array([-math.sin(angle), math.cos(angle)])
    points = np.array([x, y]) + np.array(PLACES)[..., None] * axis  # (N, 2, 2)
    upside_down = np.full((len(points), 1), (angle + math.pi) % (2 * math.pi))
    return np.concatenate([points.reshape(-1, 4), upside_down], axis=1)


def turned(angles: ArrayLike) -> Array:
    """Turns (T, ...) since the first step, clockwise positive, of block angles (T, ...) [rad], whatever their period.

    Whole turns count; from step to step the block must have turned by less than half of one.
    """
    continuous = np.unwrap(np.asarray(angles, dtype=np.float64), axis=0)
    return continuous - continuous[0]


def classify(angles: ArrayLike) -> NDArray[np.int64]:
    """Mode of each episode, numbers (...) into `MODES`: the direction of its net turn, undecided below `DECIDED_AT`.

    Only the first and the last of the block angles (T, ...) [rad], up to success or the episode's end, count: an
    episode that turns a little one way, comes back and goes round the other has the other's mode.
    """
    turn = turned(angles)[-1]
    return np.where(np.abs(turn) < DECIDED_AT, UNDECIDED, np.where(turn > 0, CLOCKWISE, COUNTER_CLOCKWISE))


def begins_upside_down(angles: ArrayLike) -> bool:
    """Whether an episode (T,) [rad] begins with the block within `NEARBY` of upside down, wherever it lies."""
    return math.cos(float(np.asarray(angles)[0]) - GOAL_POSE[2]) <= -math.cos(NEARBY)


def decided(angles: ArrayLike, mode: int) -> int:
    """Steps up to the first quarter turn in the mode's direction, that one included; all of them where undecided."""
    turn = turned(angles) * (-1 if mode == COUNTER_CLOCKWISE else 1)
    return len(turn) if mode == UNDECIDED else int(np.argmax(turn >= DECIDED_AT)) + 1
