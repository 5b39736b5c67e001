"""A scripted expert that demonstrates Avoid: smooth paths, all 24 ways equally often.

A path goes straight up through the middle of a gap, or a little beside it, and crosses over from gap to gap between
the rows. With u the share of the height between two rows, it goes sideways by the share ::

    s(u) = u^3 (10 - 15 u + 6 u^2)        s'(0) = s'(1) = s''(0) = s''(1) = 0

The agent follows it at `SPEED`. Every action is the next point of the path and a little noise, which is executed: the
demonstrations show how to come back to the path, and replaying them is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from immiscible_envs.avoid import FAR, ROWS, START_HIGH, START_LOW, WAYS, Plane, centred
from immiscible_envs.geometry import Array

SPEED = 10.0  # px per step
NOISE = 1.5  # px, standard deviation of each action about the path
ASIDE = 8.0  # px, most that a path goes beside the middle of a gap
BEYOND = 8.0  # px, y of the end of a path, on the far side
RESOLUTION = 8  # actions are whole multiples of 1/8 px
POINTS = 100  # of the curve between two rows


def path(way: Sequence[int], start: Array, aside: Array) -> Array:
    """Points (T, 2) [px], `SPEED` apart, from a start (2,) through a gap of each row, `aside` (3,) its middle."""
    gaps = [centred(count + 1)[gap] for gap, (_, count) in zip(way, ROWS, strict=True)] + aside
    x = np.array([start[0], *gaps, gaps[-1]])
    y = np.array([start[1], *(height for height, _ in ROWS), BEYOND])
    u = np.linspace(0, 1, POINTS, endpoint=False)[:, None]
    across = x[:-1] + u**3 * (10 - 15 * u + 6 * u**2) * np.diff(x)  # (POINTS, 4)
    curve = np.stack([across, y[:-1] + u * np.diff(y)], axis=-1).swapaxes(0, 1).reshape(-1, 2)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    steps = np.arange(0.0, length[-1], SPEED)
    return np.stack([np.interp(steps, length, curve[:, axis]) for axis in (0, 1)], axis=1)


def way_of_episode(seed: int, index: int) -> int:
    """The way of demonstration `index`: every 24 demonstrations show each way once, in an order drawn for them."""
    block, place = divmod(index, len(WAYS))
    return int(np.random.default_rng([0, seed, block]).permutation(len(WAYS))[place])


def make_episode(seed: int, index: int, noise: float = NOISE) -> dict[str, NDArray[np.float32]]:
    """Make one demonstration, a function of the arguments; one that fails is drawn again.

    Returns:
        position (n, 2), before the action of the same row, and action (n, 2) [px]. The last position is the first on
        the far side.
    """
    random, way = np.random.default_rng([1, seed, index]), way_of_episode(seed, index)
    while True:
        plane, start = Plane(1), np.round(random.uniform(START_LOW, START_HIGH) * RESOLUTION) / RESOLUTION
        plane.place(0, start)
        points = path(WAYS[way], start, random.uniform(-ASIDE, ASIDE, len(ROWS)))[1:]
        actions = np.round((points + random.normal(0, noise, points.shape)) * RESOLUTION) / RESOLUTION
        positions = []
        for action in actions:
            positions.append(plane.position[0].copy())
            if plane.position[0, 1] <= FAR or plane.collision[0]:
                break
            plane.advance(action[None], np.arange(1))
        if plane.info()["way"][0] == way and positions[-1][1] <= FAR:
            position = np.array(positions, dtype=np.float32)
            return {"position": position, "action": actions[: len(position)].astype(np.float32)}


def make_episodes(episodes: int, seed: int = 0, noise: float = NOISE) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Make demonstrations as `make_episode`; a ValueError if a number cannot be."""
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if not 0 <= noise <= ASIDE:
        raise ValueError(f"noise={noise}: use 0 to {ASIDE:g} px")
    return (make_episode(seed, index, noise) for index in range(episodes))
