"""`task=gym:ENV_ID`: any registered Gymnasium environment with a box of actions, scored by success or by the return."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from PIL import Image

from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.tasks.episodes import Episodes
from immiscible_policy.tasks.task import Array, Metric, Observed, Task

ALONE = "observation"
"""What the observation is called where it is one array, in a store and in `obs=`."""
FPS = 10


@lru_cache(maxsize=16)
def describe(env_id: str, arguments: str) -> gymnasium.Env[Any, Any]:
    """An environment of that name and arguments (JSON), to ask what it is; it is never stepped."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **json.loads(arguments))
    except Exception as error:  # gymnasium has a dozen errors for a name, and the environments have their own
        raise CommandError(f"task=gym:{env_id}: {type(error).__name__}: {one_line(error)}") from None


def make_environments(env_id: str, arguments: Mapping[str, Any], count: int) -> list[gymnasium.Env[Any, Any]]:
    """Build so many environments."""
    return [gymnasium.make(env_id, disable_env_checker=True, **arguments) for _ in range(count)]


class Gym(Task):
    """A registered environment; episode `s` begins with its `reset(seed=s)`. A scene is a picture.

    Demonstrations hold `action` and, under the keys of the observation space, what is observed: `observation` where
    that is a single array.

    Args:
        env_id: Its name, `module:Env-v0` to import what registers it.
        success: Key of `info` that says whether the task is done; without it the score is the return.
        max_steps: After which an episode ends; by default as the environment is registered.
        workers: Processes that step the environments in an evaluation.
        arguments: Of the environment, such as `{obs_type: state}`.
    """

    merges_seeds = True

    def __init__(
        self,
        env_id: str,
        success: str | None = None,
        max_steps: int | None = None,
        workers: int = 1,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self._id, self._workers, self._arguments, self._success = env_id, workers, dict(arguments or {}), success
        if workers < 1:
            raise CommandError(f"task.workers={workers}: needs 1 or more")
        example = describe(env_id, json.dumps(self._arguments))
        self.name, self.title = f"gym:{env_id}", env_id.partition(":")[2] or env_id
        if not isinstance(example.action_space, spaces.Box):
            raise CommandError(f"task={self.name}: its actions are {example.action_space}; a policy acts in a Box")
        self._observed, self._acted = example.observation_space, example.action_space
        if max_steps is not None and max_steps < 1:
            raise CommandError(f"task.max_steps={max_steps}: needs 1 or more")
        limit = max_steps or (example.spec.max_episode_steps if example.spec else None)
        if limit is None:
            raise CommandError(f"task={self.name} has no limit of steps; add task.max_steps=")
        self.max_steps = limit
        self.fps = round(example.metadata.get("render_fps", FPS)) or FPS
        self._renders = "rgb_array" in example.metadata.get("render_modes", ())
        self.observations = self._choices()
        total = Metric("return", "return", "sum", reward_of, -np.inf, np.inf)
        self.metrics: tuple[Metric, ...] = (total,)
        self.measured = "return"
        self.about = f"{self.title}, a Gymnasium environment. Return: the sum of rewards."
        if success is not None:
            done = Metric("success", "success", "any", partial(number_of, success))
            self.metrics, self.measured = (done, total), "success rate"
            self.about = f"{self.title}, a Gymnasium environment. Success: `{success}` was reported in the episode."

    def _choices(self) -> tuple[str, ...]:
        """All keys of boxes, then each one of numbers; a CommandError if none is of numbers."""
        numbers = [key for key, box in self._boxes.items() if not is_picture(box)]
        if not numbers:
            raise CommandError(f"task={self.name}: it observes {self._observed}; a policy needs a Box of numbers")
        return tuple(dict.fromkeys([",".join(self._boxes), *numbers]))

    @property
    def _boxes(self) -> dict[str, spaces.Box]:
        """What can be observed, by key."""
        space = self._observed
        boxes = space.spaces if isinstance(space, spaces.Dict) else {ALONE: space}
        return {key: box for key, box in boxes.items() if isinstance(box, spaces.Box)}

    def can_observe(self, obs: str) -> bool:
        """Keys in any order, each once, at least one of them of numbers."""
        keys, boxes = obs.split(","), self._boxes
        known = len(set(keys)) == len(keys) and set(keys) <= set(boxes)
        return known and not all(is_picture(boxes[key]) for key in keys)

    def may_see_pictures(self, obs: str) -> bool:
        """Whether one of the keys is a camera's."""
        return any(is_picture(self._boxes[key]) for key in obs.split(",") if key in self._boxes)

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """Single environments side by side."""
        arguments = self._arguments | ({"render_mode": "rgb_array"} if self._renders else {})
        make = partial(make_environments, self._id, {"max_episode_steps": self.max_steps} | arguments)
        return Episodes(make, num_envs, self._observed, self._acted, self._workers, self._success)

    def look(self, history: Sequence[Any], obs: str, keep: int) -> Observed:
        """Arrays laid end to end in the order of `obs`, pictures by their keys."""
        if not isinstance(self._observed, spaces.Dict):
            return Observed(_flat(np.stack(history, axis=1)), {})
        seen = {key: np.stack([now[key] for now in history], axis=1) for key in obs.split(",")}  # (N, obs_steps, ...)
        pictures = {key: values for key, values in seen.items() if is_picture(self._observed.spaces[key])}
        numbers = [_flat(values) for key, values in seen.items() if key not in pictures]
        return Observed(np.concatenate(numbers, axis=-1), pictures)

    def scenes(
        self, environment: VectorEnv[Any, Any, Any], observation: Any, info: Mapping[str, Array], obs: str
    ) -> Array:
        """Pictures; without a renderer nothing (N, 0)."""
        if not self.is_drawn:
            return np.zeros((environment.num_envs, 0))
        try:
            return np.stack(environment.render())  # type: ignore[arg-type]
        except Exception as error:  # whatever a renderer of somebody else's lacks on this machine
            raise ValueError(f"task={self.name} cannot be drawn here: {one_line(error)}") from None

    def draw(self, scene: Array, size: int) -> NDArray[np.uint8]:
        """The picture, resized."""
        if not self.is_drawn:
            return super().draw(scene, size)
        return np.asarray(Image.fromarray(scene).resize((size, size)))

    @property
    def is_drawn(self) -> bool:
        """Whether the environment renders pictures."""
        return self._renders


def reward_of(reward: Array, info: Mapping[str, Array]) -> Array:
    """The reward (N,)."""
    return reward


def number_of(key: str, reward: Array, info: Mapping[str, Array]) -> Array:
    """An entry of `info` (N,); 0 where there is none."""
    return info.get(key, np.zeros(len(reward)))


def is_picture(box: spaces.Space[Any]) -> bool:
    """Whether a box holds pictures (H, W, 3) of bytes."""
    return box.dtype == np.uint8 and len(box.shape or ()) == 3 and (box.shape or ())[2] == 3


def _flat(values: Array) -> Array:
    """Observations (N, obs_steps, ...) as (N, obs_steps, D)."""
    return values.reshape(*values.shape[:2], -1)
