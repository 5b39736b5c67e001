"""Many PushT episodes side by side, behind Gymnasium's vector interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from immiscible_envs import MAX_EPISODE_STEPS
from immiscible_envs.batch import BatchSimulation
from immiscible_envs.checks import finite, one_of
from immiscible_envs.geometry import GOAL_POSE, Array
from immiscible_envs.pusht import (
    OBS_TYPES,
    OPTIONS,
    SUCCESS_COVERAGE,
    Observation,
    Start,
    action_space,
    checked_actions,
    checked_goal,
    checked_goals,
    choose_start,
    observation_space,
    observe,
)
from immiscible_envs.rows import Columns, Mask, RowsVectorEnv
from immiscible_envs.simulation import CONTROL_HZ


class PushTVectorEnv(RowsVectorEnv[Observation]):
    """A batch of `PushTEnv`: each row is that environment, bit for bit, and its specification holds here.

    ```python
    env = gymnasium.make_vec("immiscible/PushT-v0", num_envs=50, vectorization_mode="vector_entry_point")
    observations, infos = env.reset(options={"legacy_seed": range(100_000, 100_050)})
    ```

    ## Arguments
    Those of `PushTEnv` (`render_mode` is None or "rgb_array"), and

    | Argument            | Default     | Meaning                                                             |
    |---------------------|-------------|---------------------------------------------------------------------|
    | `num_envs`          | 1           | number of rows, N                                                   |
    | `max_episode_steps` | 300         | steps after which a row is truncated                                |
    | `autoreset_mode`    | `NEXT_STEP` | an `AutoresetMode` of Gymnasium or its value, see `RowsVectorEnv`   |
    | `backend`           | `"auto"`    | what steps the rows: `"compiled"`, `"plain"`, or the first that can |
    | `threads`           | 1           | threads that share the rows of the compiled backend                 |

    Neither `backend` nor `threads` changes a result. The compiled backend calls pymunk's C library without
    Python in between; it proves on each machine that it gives the plain backend's bits, and where it cannot,
    `"auto"` warns once and takes the plain one (see `immiscible_envs.backends`).
    `env.unwrapped.backend` is the one taken.

    ## Reset options
    Beside `seed`, `reset_mask` and the modes of autoreset, which `RowsVectorEnv` describes; all of them optional:

    | Key           | Meaning                                                                              |
    |---------------|--------------------------------------------------------------------------------------|
    | `state`       | (N, 5) start states                                                                  |
    | `legacy_seed` | (N,) seeds of the published evaluation protocol; not together with `state`           |
    | `goal_pose`   | (3,) or (N, 3) goals of the episodes that begin; an automatic reset restores the     |
    |               | default goal                                                                         |

    ## Information
    The keys of `PushTEnv`, stacked over rows, each with its mask `_key` as Gymnasium's vector interface has
    it. After a reset with `reset_mask` the masks name the rows that have begun.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_HZ,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        obs_type: str = "state",
        goal_pose: Sequence[float] | Array = GOAL_POSE,
        render_mode: str | None = None,
        max_episode_steps: int = MAX_EPISODE_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        backend: str = "auto",
        threads: int = 1,
    ) -> None:
        """Build the rows; a ValueError for what the class excludes, a RuntimeError for a backend that cannot run."""
        self.obs_type = one_of(obs_type, OBS_TYPES, "obs_type")
        super().__init__(
            num_envs, observation_space(obs_type), action_space(), render_mode, max_episode_steps, autoreset_mode
        )
        self._batch = BatchSimulation(num_envs, threads, backend)
        self.backend = self._batch.backend
        self._default_goal = checked_goal(goal_pose)
        self._goals = np.tile(self._default_goal, (num_envs, 1))

    def render(self) -> tuple[Any, ...] | None:
        """One (512, 512, 3) uint8 picture per row, in render mode "rgb_array"."""
        from immiscible_envs.rendering import CANVAS, render_state

        if self.render_mode is None:
            return None
        return tuple(map(partial(render_state, size=CANVAS), self._batch.states, self._goals))

    def _split(self, options: dict[str, Any]) -> Columns:
        count = self.num_envs
        for key in options:
            one_of(key, (*OPTIONS, "reset_mask"), "reset option")
        columns: Columns = {}
        if "state" in options:
            columns["state"] = finite(options["state"], (count, 5), "option state")
        if "legacy_seed" in options:
            seeds = options["legacy_seed"]
            if np.ndim(seeds) != 1 or len(seeds) != count:
                raise ValueError(f"option legacy_seed must have shape ({count},), got {np.shape(seeds)}")
            columns["legacy_seed"] = list(seeds)
        if "goal_pose" in options:
            columns["goal_pose"] = checked_goals(options["goal_pose"], count, "option goal_pose")
        return columns

    def _choose(self, options: dict[str, Any], random: np.random.Generator) -> Start:
        return choose_start(options, random, self._default_goal)

    def _place(self, row: int, start: Start) -> None:
        self._batch.reset(row, start.arguments, start.order)
        self._goals[row] = start.goal_pose

    def _advance(self, actions: Array, going: NDArray[np.intp]) -> None:
        """Step with the agents drawn towards their actions (N, 2) [px]."""
        commands = checked_actions(actions, (self.num_envs, 2))
        self._batch.step(commands[going] if len(going) < self.num_envs else commands, going)

    def _present(self) -> tuple[Observation, dict[str, Any]]:
        states, goals = self._batch.states, self._goals.copy()
        poses = states[:, 2:].copy()
        covered = self._batch.coverage(poses, goals)
        info = {
            "coverage": covered,
            "is_success": covered > SUCCESS_COVERAGE,
            "n_contacts": self._batch.n_contacts,
            "block_pose": poses,
            "goal_pose": goals,
        }
        return observe(states, self.obs_type, goals), self._masks(info)

    def _score(self, infos: dict[str, Any]) -> tuple[Array, Mask]:
        return np.minimum(infos["coverage"] / SUCCESS_COVERAGE, 1.0), infos["is_success"]
