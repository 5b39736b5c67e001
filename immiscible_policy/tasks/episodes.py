"""Single environments side by side, in this process or in several: one episode each, then a row stays as it ended."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from PIL import Image, ImageOps

from immiscible_policy.cli import one_line

SIDE = 160
"""Of the pictures that `render` gives [px]: room for the videos of many rows in memory."""
NUMBER = (bool, int, float, np.bool_, np.number)

Array = NDArray[Any]
Make = Callable[[int], Sequence[gymnasium.Env[Any, Any]]]
"""So many environments; a function that another process can import."""


class Group:
    """The rows of one process; a row is stepped until its episode is over, and then repeats its last step."""

    def __init__(self, make: Make, count: int) -> None:
        self._make = make
        self.environments: list[gymnasium.Env[Any, Any] | None] = [None] * count
        self.last: list[tuple[Any, float, bool, bool, dict[str, float]] | None] = [None] * count
        self.pictures: list[Array | None] = [None] * count

    def reset(self, seeds: Sequence[int | None]) -> list[Any]:
        """Begin the episodes of the seeds; the rows as `step` gives them, with reward 0. A row without one is None."""
        for row, seed in enumerate(seeds):
            self.last[row], self.pictures[row] = None, None
            if seed is not None:
                environment = self.environments[row] = self.environments[row] or self._make(1)[0]
                observation, info = environment.reset(seed=seed)
                self.last[row] = (observation, 0.0, False, False, _numbers(info))
        return self.last

    def step(self, actions: Array) -> list[Any]:
        """Observation, reward, terminated, truncated and the numbers of `info` of every row."""
        for row, (environment, before) in enumerate(zip(self.environments, self.last, strict=True)):
            if environment is None or before is None:
                continue
            observation, _, terminated, truncated, info = before
            if terminated or truncated:
                self.last[row] = (observation, 0.0, terminated, truncated, info)
            else:
                observation, reward, terminated, truncated, info = environment.step(actions[row])
                self.last[row] = (observation, float(reward), bool(terminated), bool(truncated), _numbers(info))
                self.pictures[row] = None
        return self.last

    def render(self) -> list[Any]:
        """A picture (SIDE, SIDE, 3) uint8 of every row."""
        for row, environment in enumerate(self.environments):
            if environment is not None and self.last[row] is not None and self.pictures[row] is None:
                frame = Image.fromarray(np.asarray(environment.render(), np.uint8))
                self.pictures[row] = np.asarray(ImageOps.pad(frame, (SIDE, SIDE), color="white"))
        return self.pictures

    def close(self) -> None:
        """Close the environments."""
        for environment in filter(None, self.environments):
            environment.close()


class Remote:
    """A `Group` in another process; `send` a call, then `receive` what it returned."""

    def __init__(self, make: Make, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads of this process would not survive a fork
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, count), daemon=True)
        self._process.start()
        other.close()

    def send(self, method: str, *arguments: Any) -> None:
        """Begin a call."""
        self._connection.send((method, arguments))

    def receive(self) -> list[Any]:
        """Its result; a RuntimeError of one line if it failed."""
        try:
            result, error = self._connection.recv()
        except EOFError:
            raise RuntimeError("a process of environments has died; perhaps there is not enough memory") from None
        if error:
            raise RuntimeError(error)
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Make, count: int) -> None:
    """Answer calls until the other end is closed."""
    with closing(Group(make, count)) as group:
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            try:
                connection.send((getattr(group, method)(*arguments), ""))
            except Exception as error:  # whatever it is, the other process reports it
                connection.send((None, f"{type(error).__name__}: {one_line(error)}"))


class Episodes(VectorEnv[Any, Array, Array]):
    """N single environments, one episode each: a row whose episode is over stays as it ended.

    Rows do not know of each other, so the number of processes changes nothing but the time. Rows of the same seed are
    one episode, with the actions of the first of them: an evaluation fills its batch with repetitions. `infos` have
    the numbers that the environments' have, (N,) float64; 0 where a row has none.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["rgb_array"]}

    def __init__(
        self,
        make: Make,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: spaces.Box,
        workers: int = 1,
        expected: str | None = None,
    ) -> None:
        """Build the rows in so many processes; with one, in this process.

        Closing warns if no step's `info` had the `expected` key, which is misspelt then, or reported at success alone.
        """
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._box, workers = action_space, min(workers, num_envs)
        self._first = list(range(num_envs))
        self._expected, self._reported, self._stepped = expected, set[str](), False
        self._rows = [rows.tolist() for rows in np.array_split(np.arange(num_envs), workers)]
        self._group = Group(make, num_envs) if workers == 1 else None
        self._remotes = [] if workers == 1 else [Remote(make, len(rows)) for rows in self._rows]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the episodes of the seeds (N,)."""
        seeds = [int(one) for one in seed]
        self._first = [seeds.index(one) for one in seeds]
        own = [one if first == row else None for row, (one, first) in enumerate(zip(seeds, self._first, strict=True))]
        observations, _, _, _, infos = self._gather(self._call("reset", own))
        return observations, infos

    def step(self, actions: Array) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Advance the rows whose episode is not over by their actions (N, ...), clipped to the action space."""
        box = self._box
        clipped = np.clip(actions, box.low, box.high)
        rounded = np.rint(clipped) if np.issubdtype(box.dtype, np.integer) else clipped
        self._stepped = True
        return self._gather(self._call("step", rounded.astype(box.dtype)))

    def render(self) -> tuple[Any, ...]:
        """A picture (SIDE, SIDE, 3) uint8 of every row."""
        return tuple(self._call("render"))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments and end the processes."""
        if self._stepped and self._expected is not None and self._expected not in self._reported:
            known = ", ".join(sorted(self._reported)) or "no numbers at all"
            warnings.warn(f"{self._expected}: no step reported it, which counts as 0; reported: {known}", stacklevel=2)
        if self._group is not None:
            self._group.close()
        for remote in self._remotes:
            remote.close()

    def _call(self, method: str, values: Any = None) -> list[Any]:
        """What a method of the groups gives for every row; `values` has an entry for each."""
        if self._group is not None:
            rows = getattr(self._group, method)(*([] if values is None else [values]))
            return [rows[first] for first in self._first]
        for remote, own in zip(self._remotes, self._rows, strict=True):
            remote.send(method, *([] if values is None else [values[own[0] : own[-1] + 1]]))
        gathered = [row for remote in self._remotes for row in remote.receive()]
        return [gathered[first] for first in self._first]

    def _gather(self, rows: list[Any]) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = zip(*rows, strict=True)
        keys = dict.fromkeys(key for info in infos for key in info)
        self._reported.update(keys)
        gathered = {key: np.array([info.get(key, 0.0) for info in infos]) for key in keys}
        return _stack(observations), np.array(rewards), np.array(terminated), np.array(truncated), gathered


def _stack(observations: Sequence[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: _stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack([np.asarray(one) for one in observations])


def _numbers(info: dict[str, Any]) -> dict[str, float]:
    """The entries that are single numbers, arrays of one among them."""
    single = {key: np.asarray(value) for key, value in info.items() if isinstance(value, (*NUMBER, np.ndarray))}
    return {key: float(value.item()) for key, value in single.items() if value.size == 1 and value.dtype.kind in "biuf"}
