"""No environment: any robot's episodes, and policies that are scored on those that were held out of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.lerobot import COUNTERS
from immiscible_policy.tasks.task import Metric, Task

UNREAD = "task=none has no environment: policies are scored on the episodes that validation= holds out"


def _unread(reward: Any, info: Any) -> Any:
    raise CommandError(UNREAD)


class NoTask(Task):
    """Held-out demonstrations; an episode's start is its number in the store. See `evaluation.offline`."""

    name = "none"
    title = "Held-out episodes"
    about = (
        "Recorded episodes that the policy did not train on, without an environment. Energy score: how far sampled "
        "actions lie from the recorded ones, minus half of their own spread; lower is better."
    )
    measured = "energy score of held-out actions"
    max_steps = 0
    has_environment = False
    validation = 0.1
    observations = ()
    metrics = (
        Metric("energy_score", "energy_score", "last", _unread, -np.inf, np.inf, lower_is_better=True),
        Metric("action_error", "action_error", "last", _unread, 0, np.inf, lower_is_better=True),
    )

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """There is none."""
        raise CommandError(UNREAD)

    def from_features(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All of them under LeRobot's names."""
        return {name: values for name, values in columns.items() if name not in COUNTERS}

    def starts(self, text: str, episodes: int) -> list[int]:
        """There are none: what is held out is evaluated."""
        return []
