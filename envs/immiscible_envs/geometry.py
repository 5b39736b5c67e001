"""The T of PushT in the plane: its shape, keypoints and mirror image, and how much of the goal it covers.

Lengths are pixels of the 512 x 512 workspace, angles radians. The y axis points down, as in an image, so a
positive angle turns clockwise on the screen. A *pose* is `(x, y, angle)` of the block frame, whose origin is
the middle of the top of the T; a *state* is `(agent x, agent y, block x, block y, block angle)`::

      (-60, 0) +---------- o ----------+ (60, 0)      o  origin of the block frame
               |          bar          |
     (-60, 30) +-------+       +-------+ (60, 30)
                       | stem  |                      the T is its own mirror image about x = 0
                       |       |
            (-15, 120) +-------+ (15, 120)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Point = tuple[float, float]
Side = tuple[int, float, float]


def _constant(rows: Sequence[Sequence[float]]) -> Array:
    array = np.array(rows, dtype=np.float64)
    array.setflags(write=False)
    return array


BAR = _constant([(-60, 30), (60, 30), (60, 0), (-60, 0)])
STEM = _constant([(-15, 30), (-15, 120), (15, 120), (15, 30)])
CENTER_OF_GRAVITY: Point = (0.0, 45.0)  # mean of the centres of bar and stem, not weighted by area
GOAL_POSE = (256.0, 256.0, math.pi / 4)
KEYPOINTS = _constant([
    *[(9.27, 90.04), (-60.98, -1.19), (60.91, -1.39), (-0.27, 25.54), (-14.07, 122.82)],
    *[(39.00, 32.86), (-39.97, 32.73), (-16.82, 62.86), (23.54, -1.70)],
])  # fmt: skip

PARTS: list[list[Point]] = [[(float(x), float(y)) for x, y in part] for part in (BAR, STEM)]
# The four sides of each part: (axis, sign, bound) keeps points with sign * (point[axis] - bound) >= 0.
SIDES: list[list[Side]] = [
    [(axis, sign, sign * min(sign * corner[axis] for corner in part)) for axis in (0, 1) for sign in (1, -1)]
    for part in PARTS
]
AREA = 120.0 * 30.0 + 30.0 * 90.0


def place(points: ArrayLike, pose: ArrayLike) -> Array:
    """Carry points (P, 2) of the block frame into the world, by poses (..., 3): (..., P, 2), px."""
    local, poses = np.asarray(points, dtype=np.float64), np.asarray(pose, dtype=np.float64)
    cos, sin = np.cos(poses[..., 2, None]), np.sin(poses[..., 2, None])
    x = cos * local[:, 0] - sin * local[:, 1] + poses[..., 0, None]
    y = sin * local[:, 0] + cos * local[:, 1] + poses[..., 1, None]
    return np.stack([x, y], axis=-1)


def keypoints(pose: ArrayLike) -> Array:
    """The nine keypoints of the block at poses (..., 3) in the world: (..., 9, 2), px."""
    return place(KEYPOINTS, pose)


def coverage(pose: Sequence[float] | Array, goal: Sequence[float] | Array = GOAL_POSE) -> float:
    """The share of the goal that the block covers: area(block ∩ goal) / area(goal), of a pose (3,) and a goal (3,).

    Exact up to rounding, between 0 and 1. Bar and stem share no area, so the overlap is the sum of four overlaps of
    rectangles, each clipped (Sutherland & Hodgman, 1974) in the goal's frame, where the goal's sides lie along the
    axes. There the block at the goal is the goal itself, bit for bit, and its coverage is exactly 1.
    """
    goal_x, goal_y, goal_angle = float(goal[0]), float(goal[1]), float(goal[2])
    dx, dy, turn = float(pose[0]) - goal_x, float(pose[1]) - goal_y, float(pose[2]) - goal_angle
    goal_cos, goal_sin, cos, sin = math.cos(goal_angle), math.sin(goal_angle), math.cos(turn), math.sin(turn)
    shift_x, shift_y = goal_cos * dx + goal_sin * dy, goal_cos * dy - goal_sin * dx
    overlap = 0.0
    for part in PARTS:
        moved = [(cos * x - sin * y + shift_x, sin * x + cos * y + shift_y) for x, y in part]
        for sides in SIDES:
            polygon = moved
            for side in sides:
                polygon = _clip(polygon, side)
            overlap += _area(polygon)
    return min(overlap / AREA, 1.0)


def mirror_point(xy: ArrayLike, goal: ArrayLike = GOAL_POSE) -> Array:
    """Reflect world points (..., 2) [px] about the axis of symmetry of the goal T (3,)."""
    goal_pose = np.asarray(goal, dtype=np.float64)
    across = np.array([np.cos(goal_pose[2]), np.sin(goal_pose[2])])  # unit normal of the axis
    points = np.asarray(xy, dtype=np.float64)
    distance = (points - goal_pose[:2]) @ across
    return points - 2.0 * distance[..., None] * across


def mirror_state(state: ArrayLike, goal: ArrayLike = GOAL_POSE) -> Array:
    """Reflect states (..., 5) about the axis of symmetry of the goal T (3,); the angle is then in [0, 2 pi].

    The T is its own mirror image, so the block stays a T; one turned by `angle` becomes one turned by
    `2 * goal angle - angle`. An involution that keeps coverage.
    """
    states, goal_angle = np.asarray(state, dtype=np.float64), float(np.asarray(goal)[2])
    agent, block = mirror_point(states[..., 0:2], goal), mirror_point(states[..., 2:4], goal)
    angle = (2.0 * goal_angle - states[..., 4:5]) % (2.0 * np.pi)
    return np.concatenate([agent, block, angle], axis=-1)


def _clip(polygon: list[Point], side: Side) -> list[Point]:
    if not polygon:
        return polygon
    axis, sign, bound = side
    kept = []
    start = polygon[-1]
    start_depth = sign * (start[axis] - bound)
    for end in polygon:
        depth = sign * (end[axis] - bound)
        if (depth < 0.0) != (start_depth < 0.0):
            share = start_depth / (start_depth - depth)
            kept.append((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])))
        if depth >= 0.0:
            kept.append(end)
        start, start_depth = end, depth
    return kept


def _area(polygon: list[Point]) -> float:
    if not polygon:
        return 0.0
    origin_x, origin_y = polygon[0]
    twice, x, y = 0.0, 0.0, 0.0
    for end_x, end_y in polygon[1:]:
        end_x, end_y = end_x - origin_x, end_y - origin_y
        twice += x * end_y - end_x * y
        x, y = end_x, end_y
    return abs(twice) / 2.0
