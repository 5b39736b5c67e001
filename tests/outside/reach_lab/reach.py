"""Reach the middle of the plane: a point is steered by its velocity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from immiscible_policy.demos import Column, write_store
from immiscible_policy.tasks import Metric, Task

FASTEST = 0.1
STEPS = 40


class ReachEnv(gymnasium.Env):
    """Position and velocity of a point in [-1, 1]^2; the action is the next velocity.

    Args:
        keys: What is observed, `position` and `velocity`, joined by commas.
        radius: Nearer than this to the middle is a success.
    """

    def __init__(self, keys: str, radius: float) -> None:
        self.keys, self.radius = keys.split(","), radius
        self.observation_space = spaces.Box(-2, 2, (2 * len(self.keys),), np.float64)
        self.action_space = spaces.Box(-FASTEST, FASTEST, (2,), np.float64)
        self.state = {"position": np.zeros(2), "velocity": np.zeros(2)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        super().reset(seed=seed)
        angle = self.np_random.uniform(0, 2 * math.pi)
        self.state = {"position": 0.8 * np.array([math.cos(angle), math.sin(angle)]), "velocity": np.zeros(2)}
        return self._observe(), self._info()

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict]:
        velocity = np.clip(action, -FASTEST, FASTEST)
        self.state = {"position": np.clip(self.state["position"] + velocity, -1, 1), "velocity": velocity}
        info = self._info()
        return self._observe(), -info["distance"], info["reached"], False, info

    def _observe(self) -> NDArray:
        return np.concatenate([self.state[key] for key in self.keys])

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.state["position"]))
        return {"distance": distance, "reached": distance < self.radius}


class Reach(Task):
    """The task.

    Args:
        radius: Nearer than this to the middle is a success.
    """

    name = "reach"
    title = "Reach"
    about = "A point is to reach the middle of the plane. Closeness: 1 in the middle, 0 in the corners."
    measured = "closeness to the middle"
    max_steps = STEPS
    observations = ("position,velocity", "position")
    columns = {"position": Column((2,)), "velocity": Column((2,)), "action": Column((2,))}
    metrics = (
        Metric("closeness", "closeness", "max", lambda reward, info: 1 - info["distance"] / math.sqrt(2)),
        Metric("reached", "reached", "any", lambda reward, info: info["reached"]),
        Metric("return", "return", "sum", lambda reward, info: reward, -STEPS * math.sqrt(2), 0, summarised=False),
    )

    def __init__(self, radius: float = 0.05) -> None:
        self.radius = radius

    def make(self, num_envs: int, obs: str) -> VectorEnv:
        return SyncVectorEnv([lambda: ReachEnv(obs, self.radius)] * num_envs)

    def draw(self, scene: NDArray, size: int) -> NDArray[np.uint8]:
        picture = np.full((size, size, 3), 255, np.uint8)
        x, y = np.clip((scene[:2] + 1) / 2 * size, 2, size - 3).astype(int)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 0
        return picture


def demonstrate(path: Path, episodes: int = 8, seed: int = 0) -> Path:
    """Write scripted demonstrations: straight to the middle, a little unsteadily."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[NDArray]] = {"position": [], "velocity": [], "action": []}
    ends: list[int] = []
    environment = ReachEnv("position", radius=0.0)
    for episode in range(episodes):
        environment.reset(seed=seed + episode)
        for _ in range(STEPS):
            action = np.clip(-0.2 * environment.state["position"] + random.normal(0, 0.01, 2), -FASTEST, FASTEST)
            for key, values in (*environment.state.items(), ("action", action)):
                rows[key].append(values)
            environment.step(action)
        ends.append(len(rows["action"]))
    return write_store(path, {key: np.array(values) for key, values in rows.items()}, ends, {"made by": "a script"})
