"""Gymnasium's vector interface over environments that are stepped together: seeds, masked resets, autoreset."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from immiscible_envs.checks import one_of
from immiscible_envs.geometry import Array

Mask = NDArray[np.bool_]
ObsType = TypeVar("ObsType")
Columns = dict[str, Sequence[Any] | Array]
"""Reset options by key, an entry for each row."""


class RowsVectorEnv(VectorEnv[ObsType, Array, NDArray[Any]], Generic[ObsType]):
    """N rows, each an episode of its own; a subclass says what a row is.

    ## Reset
    `seed` is None, one number (row i is seeded with `seed + i`) or one per row. The option `reset_mask` (N,) bool names
    the rows that begin anew; the others stay as they are (default: all rows). The other options are the subclass's.

    ## Autoreset
    What follows the end of a row's episode, as Gymnasium specifies it. The mode stands in
    `metadata["autoreset_mode"]`. An automatic reset draws the start from the row's own generator.

    | Mode        | After an end                                                                                |
    |-------------|---------------------------------------------------------------------------------------------|
    | `NEXT_STEP` | the next step ignores the row's action and returns the new episode's start, with reward 0   |
    | `SAME_STEP` | the same step returns the new episode's start; `infos` hold what the old one ended with     |
    |             | under `final_obs` (N,) of objects and `final_info`, with their masks                        |
    | `DISABLED`  | nothing: rows begin anew by `reset_mask`. A row that is stepped without it goes on, exactly |
    |             | as the single environment does; who counts episodes takes the first end of each row         |
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        render_mode: str | None,
        max_episode_steps: int,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        """Prepare the rows, given the spaces of one; a ValueError for an argument that cannot be."""
        if num_envs < 1:
            raise ValueError(f"num_envs {num_envs} must be at least 1")
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps {max_episode_steps} must be at least 1")
        if not isinstance(autoreset_mode, AutoresetMode):
            one_of(autoreset_mode, tuple(mode.value for mode in AutoresetMode), "autoreset_mode")
        if render_mode is not None:
            one_of(render_mode, ("rgb_array",), "render_mode of the vector environment")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self._autoreset_mode}
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._max_episode_steps = max_episode_steps
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)

    @abstractmethod
    def _split(self, options: dict[str, Any]) -> Columns:
        """Check the subclass's own reset options; a ValueError if one is unknown or not what it should be."""

    @abstractmethod
    def _choose(self, options: dict[str, Any], random: np.random.Generator) -> Any:
        """One row's start, given its own options or drawn; a ValueError if they cannot be."""

    @abstractmethod
    def _place(self, row: int, start: Any) -> None:
        """Put a row at a start."""

    @abstractmethod
    def _advance(self, actions: Array, going: NDArray[np.intp]) -> None:
        """Step the rows `going` (R,) by actions (N, 2); a ValueError for bad actions, before any row has advanced."""

    @abstractmethod
    def _present(self) -> tuple[ObsType, dict[str, Any]]:
        """Observations, and infos with a mask `_key` for each key."""

    @abstractmethod
    def _score(self, infos: dict[str, Any]) -> tuple[Array, Mask]:
        """Reward (N,) and whether the episode terminates (N,)."""

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Begin an episode in every row, or in those of the option `reset_mask`.

        Raises ValueError if a seed or an option is not what the class says; no episode has begun then.
        """
        seeds = self._split_seeds(seed)
        given = dict(options or {})
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            what = f"{self.num_envs} booleans, at least one of them true"
            raise ValueError(f"option reset_mask must be {what}, got {mask}")
        columns = self._split(given)
        rows = np.flatnonzero(mask).tolist()
        for row in rows:
            if seeds[row] is not None:
                self._randoms[row] = seeding.np_random(seeds[row])[0]
        own = [{key: column[row] for key, column in columns.items()} for row in rows]
        starts = [self._choose(options, self._randoms[row]) for row, options in zip(rows, own, strict=True)]
        for row, start in zip(rows, starts, strict=True):
            self._begin(row, start)
        observations, infos = self._present()
        return observations, infos if mask.all() else _masked(infos, mask)

    def step(self, actions: Array) -> tuple[ObsType, Array, Any, Any, dict[str, Any]]:
        """Advance every row by its action (N, ...), which is ignored where a row is reset.

        Raises ValueError if the actions are not finite numbers of that shape; no row has advanced then.
        """
        begins = self._done & (self._autoreset_mode is AutoresetMode.NEXT_STEP)
        some_begin = begins.any()
        if some_begin and np.shape(actions) == self.action_space.shape:
            actions = np.where(begins[:, None], 0.0, actions)
        self._advance(actions, np.flatnonzero(~begins))
        self._elapsed += 1
        if some_begin:
            self._begin_at_random(begins)
        observations, infos = self._present()
        rewards, terminated = self._score(infos)
        rewards, terminated = np.where(begins, 0.0, rewards), terminated & ~begins
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

    def _begin_at_random(self, rows: Mask) -> None:
        for row in np.flatnonzero(rows).tolist():
            self._begin(row, self._choose({}, self._randoms[row]))

    def _begin(self, row: int, start: Any) -> None:
        self._place(row, start)
        self._elapsed[row] = 0
        self._done[row] = False

    def _masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """Infos of all rows, each key with its mask, as Gymnasium writes them."""
        return info | {f"_{key}": np.ones(self.num_envs, dtype=np.bool_) for key in info}

    def _split_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        entries = np.asarray(seed, dtype=object)
        if seed is None:
            return [None] * self.num_envs
        if entries.ndim == 0:
            return [_checked_seed(seed) + row for row in range(self.num_envs)]
        if len(entries) != self.num_envs:
            raise ValueError(f"seed has {len(entries)} entries for num_envs={self.num_envs}; give one per row")
        return [None if entry is None else _checked_seed(entry) for entry in entries]


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
