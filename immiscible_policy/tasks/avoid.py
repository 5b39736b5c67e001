"""Avoid: cross a plane past rows of pillars in one of 24 ways (see `immiscible_envs.avoid`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

import immiscible_envs
from immiscible_envs import avoid_expert
from immiscible_envs.avoid import NO_WAY, START_HIGH, START_LOW, WAYS, way_taken
from immiscible_envs.rendering import render_plane
from immiscible_envs.simulation import CONTROL_HZ, WORKSPACE
from immiscible_policy.cli import shipped
from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.store import Demonstrations
from immiscible_policy.tasks.task import Array, Metric, Modes, SetMetric, Task

ENVIRONMENT = "immiscible/Avoid-v0"
NAMES = tuple("-".join(str(gap + 1) for gap in way) for way in WAYS)
"""The gaps of each way, counted from the left."""


def mode_of(positions: Array) -> int:
    """The way of a recorded path (L, 2); the number after the last for one that does not arrive."""
    way = way_taken(positions)
    return len(WAYS) if way == NO_WAY else way


def shares(episodes: Mapping[str, Array]) -> Array:
    """Shares (25,) of the episodes that took each way and, last, of those that did not arrive."""
    ways = np.asarray(episodes["way"], dtype=np.int64)
    return np.bincount(np.where(ways < 0, len(WAYS), ways), minlength=len(WAYS) + 1) / len(ways)


def number_of_ways(episodes: Mapping[str, Array]) -> float:
    """How many of the 24 ways were taken."""
    return float(np.count_nonzero(shares(episodes)[:-1]))


def entropy(episodes: Mapping[str, Array]) -> float:
    """Entropy [nats] of the ways of the episodes that arrived: log 24 = 3.18 if all are as frequent; 0 if none did."""
    taken = shares(episodes)[:-1]
    p = taken[taken > 0] / taken.sum()
    return float(-(p * np.log(p)).sum())


def total_variation(episodes: Mapping[str, Array]) -> float:
    """Total-variation distance 1/2 sum |p - q| to the demonstrations, which show every way equally often.

    Not to arrive counts as a way of its own, which is not demonstrated.
    """
    demonstrated = np.append(np.full(len(WAYS), 1 / len(WAYS)), 0.0)
    return float(0.5 * np.abs(shares(episodes) - demonstrated).sum())


class Avoid(Task):
    """The task; episode `s` begins where the environment's `reset(seed=s)` does. A scene is a position (2,)."""

    name = "avoid"
    title = "Avoid"
    about = (
        "Avoid: cross a plane past three rows of pillars, in one of 24 equally good ways. Collision-free: the far side "
        "was reached and no pillar touched."
    )
    measured = "rate of crossings without collision"
    instruction = "Cross to the far side without touching a pillar."
    max_steps = immiscible_envs.MAX_AVOID_STEPS
    fps = CONTROL_HZ
    observations = ("position",)
    metrics = (
        Metric("collision_free", "collision_free", "any", lambda reward, info: info["is_success"]),
        Metric("collision", "collision", "any", lambda reward, info: info["collision"], summarised=False),
        Metric("way", "way", "last", lambda reward, info: info["way"], -1, len(WAYS) - 1, summarised=False),
    )
    set_metrics = (
        SetMetric("ways", number_of_ways, 0, len(WAYS)),
        SetMetric("entropy", entropy, 0, math.log(len(WAYS))),
        SetMetric("total_variation", total_variation, lower_is_better=True),
    )
    columns = {
        "position": Column((2,), "f", names=("x", "y")),
        "action": Column((2,), "f", names=("x", "y")),
    }
    expert_episodes = 240
    made_by = {"made_by": "a scripted expert: smooth paths along all 24 ways, carried out in immiscible_envs.avoid"}
    modes = Modes(
        title="Which of the 24 ways",
        names=(*NAMES, "none"),
        options={"position": (START_LOW + START_HIGH)[None] / 2},
        alike="from anywhere",
        classify=mode_of,
        is_alike=lambda positions: True,
        decided=lambda positions, way: len(positions),
        tracks={"agent": lambda positions: positions},
        extent=(0, WORKSPACE, WORKSPACE, 0),
    )

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """Positions (N, 2) [px]."""
        return gymnasium.make_vec(
            ENVIRONMENT,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def demonstrations(self) -> Path:
        """The project's own."""
        return shipped("data/avoid_expert.zarr")

    def make_episodes(
        self, episodes: int, seed: int, workers: int, noise: float | None = None
    ) -> Iterator[dict[str, Array]]:
        """By `immiscible_envs.avoid_expert`, in this process; `noise` is in px."""
        return avoid_expert.make_episodes(episodes, seed, avoid_expert.NOISE if noise is None else noise)

    def problems(self, demos: Demonstrations) -> Iterator[str]:
        """Places outside the plane."""
        for name in self.columns:
            values = demos[name]
            outside = (values < 0) | (values > WORKSPACE)
            expected = f"; the plane lies in 0..{WORKSPACE:.0f}"
            yield from checks.flagged(name, outside, values, demos.episode_ends, expected)

    def commanded(self, demos: Demonstrations) -> Array:
        """The position."""
        return demos["position"]

    def draw(self, scene: Array, size: int) -> NDArray[np.uint8]:
        """Seen from above."""
        return render_plane(scene, size)
