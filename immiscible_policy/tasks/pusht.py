"""PushT: push a T-shaped block onto its goal (see `immiscible_envs.pusht`). All that the learner knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import immiscible_envs
from immiscible_envs.simulation import CONTROL_HZ
from immiscible_policy.tasks.task import Array, Metric, Task

ENVIRONMENT = "immiscible/PushT-v0"


class PushT(Task):
    """The task; episodes begin where the published mapping puts the start seeds."""

    name = "pusht"
    title = "PushT"
    about = "PushT. Coverage: the largest share of the goal that the T covers in an episode, 0 to 1."
    measured = "coverage of the goal"
    max_steps = immiscible_envs.MAX_EPISODE_STEPS
    fps = CONTROL_HZ
    observations = ("keypoints", "state", "image")
    metrics = (
        Metric("success", "success", "any", lambda reward, info: info["is_success"], summarised=False),
        Metric("coverage", "max_coverage", "max", lambda reward, info: info["coverage"]),
        Metric("final_coverage", "final_coverage", "last", lambda reward, info: info["coverage"], summarised=False),
        Metric("reward", "max_reward", "max", lambda reward, info: reward),
    )

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """For pictures it shows the state, from which `look` draws them when the policy looks."""
        return gymnasium.make_vec(
            ENVIRONMENT,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            obs_type="state" if obs == "image" else obs,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def reset_options(self, starts: Sequence[int]) -> dict[str, Array]:
        """The published mapping."""
        return {"legacy_seed": np.array(starts)}
