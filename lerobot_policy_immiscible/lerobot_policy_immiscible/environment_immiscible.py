"""This project's PushT for LeRobot: `--env.type=immiscible_pusht`.

LeRobot may step environments in processes of their own; what such a process is handed leads it to this module, whose
import of `immiscible_envs` registers the environment there as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.envs.configs import EnvConfig, PushtEnv

import immiscible_envs  # noqa: F401


@EnvConfig.register_subclass("immiscible_pusht")
@dataclass
class ImmisciblePushT(PushtEnv):
    """LeRobot's `PushtEnv` with the T's corners observed, by `immiscible_envs.lerobot`; seeds name published starts.

    Raises:
        ValueError: If other observations are asked for.
    """

    obs_type: str = "environment_state_agent_pos"

    def __post_init__(self) -> None:
        if self.obs_type != "environment_state_agent_pos":
            raise ValueError(f"obs_type={self.obs_type}: immiscible_pusht has environment_state_agent_pos alone")
        super().__post_init__()

    @property
    def gym_id(self) -> str:
        """Name of the environment in gymnasium's registry."""
        return "immiscible/PushT-LeRobot-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of `gymnasium.make`."""
        return {"render_mode": self.render_mode, "max_episode_steps": self.episode_length}
