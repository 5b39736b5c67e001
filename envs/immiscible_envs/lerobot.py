"""PushT as LeRobot sees it: `immiscible/PushT-LeRobot-v0`, with the observations and the names of gym-pusht.

Its observation is a `Dict`:

| Key                 | Space                       | Meaning                                             |
|---------------------|-----------------------------|-----------------------------------------------------|
| `environment_state` | `Box((16,), float64)`       | the T's eight corners, x0, y0, ... x7, y7, in px    |
| `agent_pos`         | `Box(0, 512, (2,), float64)`| agent x, y in px                                    |

The corners, in LeRobot's order::

        0-----------1
        |           |
        3---4---5---2
            |   |
            7---6

LeRobot gives an environment a seed and nothing else, so the seed names the published start: 100000 to 100049 are those
of Diffusion Policy's evaluation (`legacy_seed` of `immiscible/PushT-v0`, in all other respects the same environment).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from immiscible_envs.geometry import BAR, STEM, Array, place
from immiscible_envs.pusht import PushTEnv
from immiscible_envs.simulation import WORKSPACE

CORNERS = np.concatenate([BAR[[3, 2, 1, 0]], STEM[[0, 3, 2, 1]]])  # (8, 2) of the T in the block frame [px]
TASK = "Push the T-shaped block onto the T-shaped target."  # LeRobot asks environments and datasets for it


def fit_pose(corners: Array) -> tuple[Array, Array]:
    """Fit the T to its corners (T, 8, 2) [px], in the order of `CORNERS`, by least squares (Kabsch, 1976).

    Returns:
        Poses (T, 3), x, y [px] and angle [rad] in 0..2 pi, and the largest distance (T,) of a corner from
        where the pose puts it [px].
    """
    local = CORNERS - CORNERS.mean(axis=0)
    world = corners - corners.mean(axis=1, keepdims=True)
    cosine = np.einsum("pi,tpi->t", local, world)
    sine = np.einsum("p,tp->t", local[:, 0], world[..., 1]) - np.einsum("p,tp->t", local[:, 1], world[..., 0])
    angle = np.arctan2(sine, cosine) % (2 * np.pi)
    turned = np.stack([np.zeros_like(angle), np.zeros_like(angle), angle], axis=1)
    position = (corners - place(CORNERS, turned)).mean(axis=1)
    pose = np.concatenate([position, angle[:, None]], axis=1)
    return pose, np.linalg.norm(corners - place(CORNERS, pose), axis=-1).max(axis=1)


class CornersAndAgent(gymnasium.ObservationWrapper):
    """Shows the T's corners and the agent's place instead of the state, and starts where a seed says."""

    task = task_description = TASK

    def __init__(self, env: PushTEnv) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({
            "environment_state": spaces.Box(-WORKSPACE, 2 * WORKSPACE, (16,), np.float64),
            "agent_pos": spaces.Box(0, WORKSPACE, (2,), np.float64),
        })  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: at the published start of `seed` unless there are options, at any without a seed.

        Options named `lerobot_...`, which LeRobot gives its own wrappers, are left out.
        """
        chosen = {name: value for name, value in (options or {}).items() if not name.startswith("lerobot_")}
        published = {"legacy_seed": seed} if seed is not None and not chosen else chosen
        return super().reset(seed=seed, options=published)

    def observation(self, observation: Array) -> dict[str, Array]:
        """Corners and agent of a state (5,)."""
        return {"environment_state": place(CORNERS, observation[2:]).ravel(), "agent_pos": observation[:2]}


def make(render_mode: str | None = None) -> CornersAndAgent:
    """Build the environment; called by `gymnasium.make`."""
    return CornersAndAgent(PushTEnv(obs_type="state", render_mode=render_mode))
