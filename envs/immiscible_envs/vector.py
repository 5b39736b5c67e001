"""Many PushT episodes side by side, behind Gymnasium's vector interface."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
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
from immiscible_envs.simulation import CONTROL_HZ

Mask = NDArray[np.bool_]


class PushTVectorEnv(VectorEnv[Observation, Array, NDArray[Any]]):
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
    | `autoreset_mode`    | `NEXT_STEP` | an `AutoresetMode` of Gymnasium or its value, see below             |
    | `backend`           | `"auto"`    | what steps the rows: `"compiled"`, `"plain"`, or the first that can |
    | `threads`           | 1           | threads that share the rows of the compiled backend                 |

    Neither `backend` nor `threads` changes a result. The compiled backend calls pymunk's C library without
    Python in between; it proves on each machine that it gives the plain backend's bits, and where it cannot,
    `"auto"` warns once and takes the plain one (see `immiscible_envs.backends`).
    `env.unwrapped.backend` is the one taken.

    ## Reset
    `seed` is None, one number (row i is seeded with `seed + i`) or one per row. Options, all of them
    optional:

    | Key           | Meaning                                                                              |
    |---------------|--------------------------------------------------------------------------------------|
    | `state`       | (N, 5) start states                                                                  |
    | `legacy_seed` | (N,) seeds of the published evaluation protocol; not together with `state`           |
    | `goal_pose`   | (3,) or (N, 3) goals of the episodes that begin                                      |
    | `reset_mask`  | (N,) bool, the rows that begin anew; the others stay as they are (default: all rows) |

    ## Autoreset
    What follows the end of a row's episode, as Gymnasium specifies it. The mode stands in
    `metadata["autoreset_mode"]`. An automatic reset draws the start from the row's own generator and restores
    the default goal.

    | Mode        | After an end                                                                                |
    |-------------|---------------------------------------------------------------------------------------------|
    | `NEXT_STEP` | the next step ignores the row's action and returns the new episode's start, with reward 0   |
    | `SAME_STEP` | the same step returns the new episode's start; `infos` hold what the old one ended with     |
    |             | under `final_obs` (N,) of objects and `final_info`, with their masks                        |
    | `DISABLED`  | nothing: rows begin anew by `reset_mask`. A row that is stepped without it goes on, exactly |
    |             | as the single environment does; who counts episodes takes the first end of each row         |

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
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps {max_episode_steps} must be at least 1")
        if not isinstance(autoreset_mode, AutoresetMode):
            one_of(autoreset_mode, tuple(mode.value for mode in AutoresetMode), "autoreset_mode")
        if render_mode is not None:
            one_of(render_mode, ("rgb_array",), "render_mode of the vector environment")
        self._batch = BatchSimulation(num_envs, threads, backend)
        self.num_envs = num_envs
        self.obs_type = one_of(obs_type, OBS_TYPES, "obs_type")
        self.render_mode = render_mode
        self._autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self._autoreset_mode}
        self.single_observation_space = observation_space(obs_type)
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_episode_steps = max_episode_steps
        self._default_goal = checked_goal(goal_pose)
        self._goals = np.tile(self._default_goal, (num_envs, 1))
        self.backend = self._batch.backend
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every row, or in those of the option `reset_mask`.

        Raises ValueError if a seed or an option is not what the class says; no episode has begun then.
        """
        seeds = self._split_seeds(seed)
        mask, options_by_row = self._split_options(options or {})
        rows = np.flatnonzero(mask).tolist()
        for row in rows:
            if seeds[row] is not None:
                self._randoms[row] = seeding.np_random(seeds[row])[0]
        starts = [choose_start(options_by_row[row], self._randoms[row], self._default_goal) for row in rows]
        for row, start in zip(rows, starts, strict=True):
            self._begin(row, start)
        observations, infos = self._present()
        return observations, infos if mask.all() else _masked(infos, mask)

    def step(self, actions: Array) -> tuple[Observation, Array, Any, Any, dict[str, Any]]:
        """Advance every row by 0.1 s with its agent drawn towards its action (N, 2), px, ignored where a row is reset.

        Raises ValueError if the actions are not (N, 2) finite numbers; no row has advanced then.
        """
        begins = self._done & (self._autoreset_mode is AutoresetMode.NEXT_STEP)
        some_begin = begins.any()
        if some_begin and np.shape(actions) == (self.num_envs, 2):
            actions = np.where(begins[:, None], 0.0, actions)
        commands = checked_actions(actions, (self.num_envs, 2))
        going = np.flatnonzero(~begins)
        self._batch.step(commands[going] if some_begin else commands, going)
        self._elapsed += 1
        if some_begin:
            self._begin_at_random(begins)
        observations, infos = self._present()
        rewards = np.where(begins, 0.0, np.minimum(infos["coverage"] / SUCCESS_COVERAGE, 1.0))
        terminated = infos["is_success"] & ~begins
        truncated = self._elapsed >= self._max_episode_steps
        done = terminated | truncated
        self._done = done.copy()
        if self._autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            final = np.full(self.num_envs, None, dtype=object)
            for row, observation in enumerate(iterate(self.observation_space, observations)):
                final[row] = observation if done[row] else None
            ended = {"final_obs": final, "final_info": _masked(infos, done)}
            self._begin_at_random(done)
            observations, infos = self._present()
            infos |= ended | {f"_{key}": done.copy() for key in ended}
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """One (512, 512, 3) uint8 picture per row, in render mode "rgb_array"."""
        from immiscible_envs.rendering import CANVAS, render_state

        if self.render_mode is None:
            return None
        return tuple(map(partial(render_state, size=CANVAS), self._batch.states, self._goals))

    def _begin_at_random(self, rows: Mask) -> None:
        for row in np.flatnonzero(rows).tolist():
            self._begin(row, choose_start({}, self._randoms[row], self._default_goal))

    def _begin(self, row: int, start: Start) -> None:
        self._batch.reset(row, start.arguments, start.order)
        self._goals[row] = start.goal_pose
        self._elapsed[row] = 0
        self._done[row] = False

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
        masks = {f"_{key}": np.ones(self.num_envs, dtype=np.bool_) for key in info}
        return observe(states, self.obs_type, goals), {**info, **masks}

    def _split_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        entries = np.asarray(seed, dtype=object)
        if seed is None:
            return [None] * self.num_envs
        if entries.ndim == 0:
            return [_checked_seed(seed) + row for row in range(self.num_envs)]
        if len(entries) != self.num_envs:
            raise ValueError(f"seed has {len(entries)} entries for num_envs={self.num_envs}; give one per row")
        return [None if entry is None else _checked_seed(entry) for entry in entries]

    def _split_options(self, options: dict[str, Any]) -> tuple[Mask, list[dict[str, Any]]]:
        """The rows to begin and, for each row, the options of a single environment."""
        count = self.num_envs
        for key in options:
            one_of(key, (*OPTIONS, "reset_mask"), "reset option")
        columns: dict[str, Sequence[Any] | Array] = {}
        if "state" in options:
            columns["state"] = finite(options["state"], (count, 5), "option state")
        if "legacy_seed" in options:
            seeds = options["legacy_seed"]
            if np.ndim(seeds) != 1 or len(seeds) != count:
                raise ValueError(f"option legacy_seed must have shape ({count},), got {np.shape(seeds)}")
            columns["legacy_seed"] = list(seeds)
        if "goal_pose" in options:
            columns["goal_pose"] = checked_goals(options["goal_pose"], count, "option goal_pose")
        mask = np.asarray(options.get("reset_mask", np.ones(count, dtype=np.bool_)))
        if mask.shape != (count,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"option reset_mask must be {count} booleans, at least one of them true, got {mask}")
        return mask, [{key: column[row] for key, column in columns.items()} for row in range(count)]


def _checked_seed(seed: Any) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"seed {seed!r} is not a whole number >= 0")
    return number


def _masked(infos: dict[str, Any], rows: Mask) -> dict[str, Any]:
    """Infos of some rows alone: zeros elsewhere, and masks that say so, as Gymnasium writes them."""
    masked = {key: np.zeros_like(values) for key, values in infos.items()}
    for key, values in infos.items():
        masked[key][rows] = values[rows]
    return masked
