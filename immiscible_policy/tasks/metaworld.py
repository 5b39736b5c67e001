"""`task=metaworld/push-v3` and the other 49 tasks of Meta-World (Yu et al., CoRL 2019; version 3, on MuJoCo).

One task at a time, as its benchmark MT1 has it: the places of the objects and of the goal are drawn anew in every
episode, and the goal is observed. Without it reach, push and others could not be done: nothing else shows where to go.
"""

from __future__ import annotations

import atexit
import copy
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from PIL import Image

from immiscible_policy.cli import CommandError, one_line, unknown
from immiscible_policy.demos.checks import Column
from immiscible_policy.tasks.episodes import SIDE, Episodes
from immiscible_policy.tasks.task import Array, Metric, Task

EXTRA = "pip install 'immiscible-policy[metaworld]'"
MAX_STEPS = 500
FPS = 80
NOISE = 0.1
"""Standard deviation of what disturbs the expert's actions, which lie in -1..1."""
CLOSING = 10
"""Steps of a demonstration after its first success."""
CAMERA = "corner2"
OBSERVED = 39


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task whose episode is a function of the seed of its reset, and ends when it succeeds."""

    def __init__(self, name: str) -> None:
        super().__init__(duplicate(prototype(name)))
        self._name = name

    def render(self) -> Any:
        """A picture (SIDE, SIDE, 3), upright: the camera hangs upside down."""
        frame: Any = self.env.render()
        return frame[::-1, ::-1]

    def close(self) -> None:
        """Wait in the pool for the next evaluation."""
        pool(self._name).append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw the places from the seed."""
        if seed is not None:
            self.env.unwrapped.seed(seed)  # type: ignore[attr-defined]
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As Meta-World steps; success terminates."""
        observation, reward, _, truncated, info = self.env.step(action)
        return observation, reward, bool(info["success"]), truncated, info


@cache
def library() -> Any:
    """The package; a CommandError with the command that installs it where it is missing."""
    try:
        import metaworld
        import metaworld.policies
    except ImportError as error:
        raise CommandError(f"task=metaworld needs its own packages ({one_line(error)}): {EXTRA}") from None
    return metaworld


@cache
def prototype(name: str) -> Any:
    """An environment of a task whose goal is observed and whose places are drawn from its own seed."""
    environment = library().env_dict.ALL_V3_ENVIRONMENTS[name](
        render_mode="rgb_array", camera_name=CAMERA, width=SIDE, height=SIDE
    )
    environment._partially_observable = False
    del environment.sawyer_observation_space  # which was made for a hidden goal
    environment._freeze_rand_vec, environment.seeded_rand_vec, environment._set_task_called = False, True, True
    return environment


def duplicate(environment: Any) -> Any:
    """A second environment with a model and data of its own, without reading the scene's files again."""
    import mujoco

    model = copy.copy(environment.model)
    known = {id(environment.model): model, id(environment.data): mujoco.MjData(model)}
    second = object.__new__(type(environment))
    second.__dict__.update(copy.deepcopy(environment.__dict__, known))
    return second


@cache
def pool(name: str) -> list[Seeded]:
    """The environments of a task that this process has built and that are not in use."""
    waiting: list[Seeded] = []

    def end() -> None:
        for environment in waiting:
            environment.env.close()

    atexit.register(end)  # while OpenGL is still there
    return waiting


def make_environments(name: str, count: int) -> list[Seeded]:
    """So many environments, from the pool as far as it goes: building one takes a tenth of a second."""
    waiting = pool(name)
    kept = [waiting.pop() for _ in range(min(count, len(waiting)))]
    return kept + [Seeded(name) for _ in range(count - len(kept))]


def demonstrate(name: str, seed: int, noise: float, index: int) -> dict[str, Array]:
    """One demonstration by Meta-World's own expert, a function of the arguments; one that fails is drawn again.

    What is executed is the expert's action and normal noise; what is recorded is the expert's action. So the
    demonstrations show how to recover, and not the noise (DART; Laskey et al., CoRL 2017).

    Returns:
        state (n, 39) and action (n, 4) float32.
    """
    random, (environment,) = np.random.default_rng([seed, index]), make_environments(name, 1)
    expert = library().policies.ENV_POLICY_MAP[name]()
    while True:
        state, _ = environment.reset(seed=int(random.integers(2**32)))
        states: list[Array] = []
        actions: list[Array] = []
        last = MAX_STEPS
        while len(states) < last:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it asks for more than 1
                action = np.clip(expert.get_action(state), -1, 1)
            states.append(state)
            actions.append(action)
            state, _, success, _, _ = environment.step(np.clip(action + random.normal(0, noise, 4), -1, 1))
            if success:
                last = min(last, len(states) + CLOSING)
        if last < MAX_STEPS:
            environment.close()
            return {"state": np.array(states, np.float32), "action": np.array(actions, np.float32)}


class MetaWorld(Task):
    """A task of Meta-World; episode `s` has the places that are drawn from the seed `s`. A scene is a picture.

    Args:
        env_name: Such as `push-v3`.
        workers: Processes that step the environments in an evaluation.
    """

    measured = "success rate"
    max_steps = MAX_STEPS
    merges_seeds = True
    fps = FPS
    observations = ("state",)
    columns = {
        "state": Column((OBSERVED,), "f"),
        "action": Column((4,), "f", names=("x", "y", "z", "gripper")),
    }
    metrics = (
        Metric("success", "success", "any", lambda reward, info: info.get("success", np.zeros(len(reward)))),
        Metric("return", "return", "sum", lambda reward, info: reward, -np.inf, np.inf, summarised=False),
    )

    def __init__(self, env_name: str, workers: int = 1) -> None:
        known = sorted(library().env_dict.ALL_V3_ENVIRONMENTS)
        if env_name not in known:
            raise CommandError(unknown("task of Meta-World", env_name, known))
        if workers < 1:
            raise CommandError(f"task.workers={workers}: needs 1 or more")
        self._env_name, self._workers = env_name, workers
        self.name, self.title = f"metaworld/{env_name}", f"Meta-World {env_name}"
        self.about = f"{self.title}: a robot arm, seen as 39 numbers. Success: the task was done within 500 steps."
        self.instruction = env_name.removesuffix("-v3").replace("-", " ")
        self.made_by = {"made_by": "the scripted expert of Meta-World", "metaworld": version("metaworld")}

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """The states (N, 39) float64: hand, gripper and objects now and one step before, and the goal."""
        make, state = partial(make_environments, self._env_name), spaces.Box(-np.inf, np.inf, (OBSERVED,), np.float64)
        return Episodes(make, num_envs, state, spaces.Box(-1, 1, (4,), np.float32), self._workers)

    def make_episodes(
        self, episodes: int, seed: int, workers: int, noise: float | None = None
    ) -> Iterator[dict[str, Array]]:
        """By `demonstrate`; `noise` is 0.1 by default."""
        noise = NOISE if noise is None else noise
        for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not 0 <= noise <= 1:
            raise ValueError(f"noise={noise}: use 0 to 1; actions lie in -1..1")
        make = partial(demonstrate, self._env_name, seed, noise)
        if workers == 1:
            return map(make, range(episodes))
        return in_processes(make, episodes, workers)

    def scenes(
        self, environment: VectorEnv[Any, Any, Any], observation: Any, info: Mapping[str, Array], obs: str
    ) -> Array:
        """Pictures (N, SIDE, SIDE, 3); where MuJoCo cannot draw, nothing (N, 0)."""
        return np.stack(environment.render()) if self.is_drawn else np.zeros((environment.num_envs, 0))  # type: ignore[arg-type]

    def draw(self, scene: Array, size: int) -> NDArray[np.uint8]:
        """The picture, resized."""
        if not self.is_drawn:
            raise ValueError(f"task={self.name} cannot be drawn here ({fault()}); try MUJOCO_GL=egl, or osmesa")
        return np.asarray(Image.fromarray(scene).resize((size, size)))

    @property
    def is_drawn(self) -> bool:
        """Whether MuJoCo can draw on this machine."""
        return not fault()


def in_processes(make: Any, episodes: int, workers: int) -> Iterator[dict[str, Array]]:
    """The same episodes from so many processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield from processes.map(make, range(episodes))


@cache
def fault() -> str:
    """Why MuJoCo cannot draw here, in one line; empty if it can."""
    environment = Seeded("reach-v3")
    try:
        environment.reset(seed=0)
        environment.render()
    except Exception as error:  # each platform of OpenGL has its own
        return one_line(error)
    return ""
