"""What a task is to the rest of the project: an environment, its starts and metrics, and its demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from immiscible_policy.cli import CommandError, parse_range, unknown
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.download import Archive
from immiscible_policy.demos.export import Feature
from immiscible_policy.demos.keys import require_keys
from immiscible_policy.demos.store import attributes, contents, open_store
from immiscible_policy.demos.windows import Layout, Windows, make_windows
from immiscible_policy.extensions import build, find_factory, registered

GROUP = "immiscible_policy.tasks"
"""Entry-point group in which other packages register tasks."""
BUILT_IN = {
    "pusht": "immiscible_policy.tasks.pusht:PushT",
    "avoid": "immiscible_policy.tasks.avoid:Avoid",
    "metaworld/NAME": "immiscible_policy.tasks.metaworld:MetaWorld",
    "gym:ENV_ID": "immiscible_policy.tasks.gym:Gym",
    "none": "immiscible_policy.tasks.none:NoTask",
}
MADE_FAMILY = "metaworld/"
"""Begins the names of those tasks of other packages whose demonstrations are made here."""
DEFAULT = next(iter(BUILT_IN))
"""The task of a store or a checkpoint that names none."""
FIRST_START = {"legacy": 100_000, "fresh": 200_000}
"""Where a named list of starts begins."""
MOST_COUNTED = 8
"""So many modes are counted one by one."""
MOST_EPISODES = 100_000
"""More episodes are evaluated at no checkpoint."""
LARGEST_START = 2**32 - 1

Array = NDArray[Any]


class Directed:
    """What says whether more of it is better."""

    lower_is_better: bool

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.lower_is_better else 1

    @property
    def is_proportion(self) -> bool:
        """Whether it is a share of episodes: each scores 0 or 1."""
        return False


@dataclass(frozen=True)
class Metric(Directed):
    """One number that an episode is scored by.

    `read` gives its value (N,) after a step from reward (N,) and info; at the reset the reward is NaN, which `max`
    ignores. `reduce` makes one number of an episode's steps: `max` counts the reset as well, `any` gives 0 or 1.
    """

    name: str  # in summaries and reports, such as `coverage`
    column: str  # in episodes.csv, such as `max_coverage`
    reduce: Literal["max", "last", "any", "sum"]
    read: Callable[[Array, Mapping[str, Array]], Array]
    low: float = 0.0
    high: float = 1.0
    summarised: bool = True  # whether summaries and reports show it
    lower_is_better: bool = False

    @property
    def is_proportion(self) -> bool:
        """Whether it is a share of episodes: each scores 0 or 1."""
        return self.reduce == "any"


@dataclass(frozen=True)
class SetMetric(Directed):
    """One number of all episodes of a checkpoint together, such as how many ways to do the task they took.

    `read` gives it from the metrics (N,) of the N episodes, by name.
    """

    name: str
    read: Callable[[Mapping[str, Array]], float]
    low: float = 0.0
    high: float = 1.0
    lower_is_better: bool = False


class Observed(NamedTuple):
    """What a policy sees of B episodes: its last observations, oldest first along axis 1."""

    numbers: Array  # (B, obs_steps, Do)
    frames: Mapping[str, Array]  # by camera, (B, obs_steps, H, W, 3) uint8


@dataclass(frozen=True)
class Modes:
    """Equally good ways to do a task, and which of them an episode took; an episode of L steps is L scenes."""

    title: str  # what the benchmark is called: `Which way round from symmetric starts`
    names: tuple[str, ...]  # of the modes; the last one means that no way was taken
    options: Mapping[str, Array]  # reset options of the starts that favour no mode, a row each
    alike: str  # which demonstrations begin in such a situation, in words that follow `demonstrations`
    classify: Callable[[Array], int]  # episode (L, ...) -> its mode, a number into `names`
    is_alike: Callable[[Array], bool]  # whether an episode (L, ...) begins in such a situation
    decided: Callable[[Array, int], int]  # episode (L, ...), mode -> steps until the mode was clear
    tracks: Mapping[str, Callable[[Array], Array]]  # by title, points (L, 2) to draw, in the units of `extent`
    extent: tuple[float, float, float, float]  # left, right, bottom, top of what `Task.draw` shows
    published: Sequence[tuple[str, str, str]] = ()  # whose, the share of the more frequent mode, the primary metric
    protocol: Mapping[str, Any] = field(default_factory=dict)  # options of `published` that are compared

    def __len__(self) -> int:
        return len(next(iter(self.options.values())))

    def first(self, count: int) -> Modes:
        """The same from the first `count` starts; ValueError if there are fewer."""
        if count > len(self):
            raise ValueError(f"starts={count}: there are {len(self)} starts that favour no mode")
        return replace(self, options={key: values[:count] for key, values in self.options.items()})

    @property
    def are_few(self) -> bool:
        """Whether they can be counted one by one."""
        return len(self.names) <= MOST_COUNTED

    def counted(self, counts: Sequence[int] | Array) -> str:
        """Say how many episodes have each mode, counts (K,); of many modes, how many and how frequent they are."""
        if self.are_few:
            return ", ".join(f"{count} {name}" for count, name in zip(counts, self.names, strict=True))
        taken, none = np.asarray(counts)[:-1], counts[-1]
        spread = f"{taken.min()} to {taken.max()} times each"
        return f"{np.count_nonzero(taken)} of {len(taken)}, {spread}, and {none} {self.names[-1]}"


@dataclass(frozen=True)
class ObservationLayout:
    """How published policies of a task observe it: what other projects' checkpoints can be read and written with."""

    numbers: Mapping[int, str]  # the `obs` of so many numbers per observation
    agent: Mapping[str, slice]  # where the agent's position lies among the numbers of an `obs`, beside pictures alone
    camera: str
    side: int  # of the camera's square pictures [px]


class Task(Protocol):
    """What a policy is trained for and scored on.

    A task derives from this class, states what has no default below, and writes `make`; worker processes receive it
    pickled. A *scene* is what a picture of one moment needs, an array of any shape.
    """

    name: str  # for `task=`
    title: str  # in reports
    about: str  # one sentence for a newcomer: what the task is, what the primary metric says
    measured: str  # the primary metric in the middle of a sentence, such as `coverage of the goal`
    max_steps: int  # after which an episode ends
    metrics: tuple[Metric, ...]  # what an episode is scored by; the first summarised one is the primary metric
    observations: tuple[str, ...]  # what `obs=` may name, the default first; if empty, arrays of the demonstrations
    has_environment: bool = True  # if not, policies are scored on held-out demonstrations
    validation: float = 0.0  # share of the episodes that are held out unless `validation=` says otherwise
    set_metrics: tuple[SetMetric, ...] = ()  # what all episodes of a checkpoint are scored by together
    merges_seeds: bool = False  # whether environments of one seed are one episode, with the actions of the first
    fps: int = 10  # steps per second, of demonstrations and videos
    action: str = "action"  # key of the actions in the demonstrations
    columns: Mapping[str, Column] = {}  # arrays of the demonstrations; if empty, all that a store has are read
    cures: Mapping[str, str] = {}  # what to do about a line of `problems`, by a pattern in it
    instruction: str = ""  # the task as one would tell a person to do it
    modes: Modes | None = None  # equally good ways to do it, for the benchmark of modality
    archive: Archive | None = None  # demonstrations to download
    published: ObservationLayout | None = None  # for exchanging checkpoints with other projects
    teleoperation: str = ""  # what `demos record` tells the person who demonstrates
    expert_episodes: int = 50  # so many demonstrations does `demos make` make by default
    made_by: Mapping[str, str] = {}  # what a store of `make_episodes` records of how it was made

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """Build the environments that a policy with this observation acts in, without autoreset or with NEXT_STEP."""
        ...

    def reset_options(self, starts: Sequence[int]) -> dict[str, Array]:
        """Options of `reset` that begin the episodes `starts` (N,), one row each; `seed=starts` is given as well."""
        return {}

    def starts(self, text: str, episodes: int) -> list[int]:
        """Read `legacy` or `fresh`, of which so many `episodes`, or start seeds such as `100000..100008` or `3,5,8`.

        Raises CommandError if the text is none of these or there is no episode.
        """
        if episodes < 1:
            raise CommandError(f"episodes={episodes}: needs 1 or more")
        if episodes > MOST_EPISODES:
            raise CommandError(f"episodes={episodes}: needs {MOST_EPISODES:,} or fewer")
        if text in FIRST_START:
            return list(range(FIRST_START[text], FIRST_START[text] + episodes))
        try:
            starts = parse_range("starts", text)
        except CommandError as error:
            raise CommandError(f"{error}, or {', or '.join(FIRST_START)}") from None
        if max(starts) > LARGEST_START:
            raise CommandError(f"starts={text}: a start seed is at most {LARGEST_START}")
        return starts

    def can_observe(self, obs: str) -> bool:
        """Whether `obs=` may be this, where the task has observations of its own."""
        return obs in self.observations

    def may_see_pictures(self, obs: str) -> bool:
        """Whether a policy that observes this may see a camera; of a store's arrays only the store knows."""
        return not self.observations or obs == "image"

    def look(self, history: Sequence[Any], obs: str, keep: int) -> Observed:
        """What the policy sees of the environments' last obs_steps observations of N episodes, oldest first.

        The first `keep` episodes count; the others repeat the last of these.
        """
        return Observed(np.stack(history, axis=1), {})

    def keys(self, obs: str) -> tuple[str, ...]:
        """By what names a trained policy that sees `obs` takes its cameras and its arrays, see `acting.RobotPolicy`."""
        return tuple(obs.split(","))

    @property
    def scored_on(self) -> str:
        """What a policy is scored on, for people: `start` or `held-out episode`."""
        return "start" if self.has_environment else "held-out episode"

    def demonstrations(self) -> Path | None:
        """The store to train on unless `data=` names another; None if there is none."""
        return None

    def make_episodes(
        self, episodes: int, seed: int, workers: int, noise: float | None = None
    ) -> Iterator[dict[str, Array]]:
        """Arrays of one episode after another by a scripted expert, each a function of seed, noise and its number.

        `noise` is the standard deviation of what disturbs the expert's actions; None: the expert's own.

        Raises ValueError if the task has no expert, or a number cannot be.
        """
        raise ValueError(f"task={self.name} has no scripted expert")

    def teleoperate(self, save: Callable[[Mapping[str, Array]], object], episode: int, seed: int) -> None:
        """Let a person demonstrate and `save` the arrays of each episode; the first has the number `episode`.

        Raises ValueError if the task cannot be demonstrated by hand.
        """
        raise ValueError(f"task={self.name} cannot be demonstrated by hand")

    def observation(self, demos: Demonstrations, obs: str) -> Array:
        """The numbers that a policy sees of each recorded step, (T, Do) float32: here the arrays that `obs` names."""
        keys = [key for key in obs.split(",") if key not in demos.frames]
        numbers = [demos[key].reshape(len(demos), -1) for key in keys]
        return np.concatenate([np.empty((len(demos), 0)), *numbers], axis=1).astype(np.float32)

    def frames(self, demos: Demonstrations, obs: str, source: str = "stored") -> dict[str, torch.Tensor] | None:
        """What cameras saw, (T, H, W, 3) uint8 each, or None if the policy sees no pictures.

        They are `stored`, or `rendered` from the recorded steps.

        Raises ValueError if the pictures are not stored or cannot be rendered.
        """
        cameras = [key for key in obs.split(",") if key in demos.frames]
        if cameras and source != "stored":
            raise ValueError(f"images={source}: task={self.name} cannot draw its demonstrations; use images=stored")
        return {camera: demos.frames[camera].as_bytes() for camera in cameras} or None

    def mirror(self, demos: Demonstrations) -> Demonstrations:
        """The demonstrations and, after them, their mirror images; a ValueError if the task has none."""
        raise ValueError(f"mirror=true: task={self.name} has no mirror; leave it out")

    def problems(self, demos: Demonstrations) -> Iterator[str]:
        """Say, a line each, what no environment of this task can have given."""
        return iter(())

    def commanded(self, demos: Demonstrations) -> Array | None:
        """The recorded (T, Da) that the actions command, where they are target positions in the same units."""
        return None

    def features(self, demos: Demonstrations) -> dict[str, Feature]:
        """What a LeRobot policy reads of each step, by LeRobot's names."""
        numbers = self.observation(demos, first_observation(self, demos))
        actions = demos[self.action].reshape(len(demos), -1)
        return {"observation.state": Feature(numbers), "action": Feature(actions.astype(np.float32))}

    def from_features(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """A store's arrays from the features (T, width) of a LeRobot data set that `export` did not write.

        Raises ValueError if they do not tell what the store has to hold.
        """
        raise ValueError(f"task={self.name} cannot be read from another project's data set; use task=none")

    def scenes(
        self, environment: VectorEnv[Any, Any, Any], observation: Any, info: Mapping[str, Array], obs: str
    ) -> Array:
        """Scenes (N, ...) of the environments now; `environment` is what `make` gave."""
        return np.asarray(observation)

    def recorded_scenes(self, demos: Demonstrations) -> Array:
        """Scenes (T, ...) of recorded steps."""
        return self.observation(demos, first_observation(self, demos))

    def draw(self, scene: Array, size: int) -> NDArray[np.uint8]:
        """A picture (size, size, 3) of a scene; a ValueError if the task has none."""
        raise ValueError(f"task={self.name} cannot be drawn: it has no renderer")

    @property
    def is_drawn(self) -> bool:
        """Whether `draw` draws."""
        return type(self).draw is not Task.draw


def summarised(task: Task) -> list[Metric]:
    """The metrics that summaries and comparisons show, the primary one first."""
    return [metric for metric in task.metrics if metric.summarised]


def primary(task: Task) -> Metric:
    """The metric that checkpoints are chosen by and runs are compared on."""
    return summarised(task)[0]


def success(task: Task, metrics: Mapping[str, float]) -> bool:
    """Whether an episode succeeded, by the task's first yes-or-no metric; never without one."""
    return bool(next((metrics[metric.name] for metric in task.metrics if metric.reduce == "any"), False))


def recorded_task(config: Mapping[str, Any], default: str = DEFAULT) -> Task:
    """The task that a run's options name; `default` for a checkpoint of another project, which names none.

    Raises CommandError as `find_task`, and where `module:attribute` is not a class derived from `Task`: a checkpoint
    may come from anywhere, and nothing else that it names is called.
    """
    named = {"name": default} | config.get("task", {})
    name = named["name"]
    factory = find_factory("task", GROUP, name, BUILT_IN)
    if name not in registered(GROUP, BUILT_IN) and not isinstance(factory, partial):  # that is a family's
        if Task not in getattr(factory, "__mro__", ()):
            raise CommandError(f"task={name}: a checkpoint names it, and it is not a class derived from Task")
    return find_task(**named)


def open_demonstrations(
    task: Task, data: str | Path | None = None, obs: str | None = None, action: str | None = None
) -> Demonstrations:
    """Open the store `data`, or the task's own.

    Where `obs` names arrays of the store, these and the `action` alone are read, and every camera that it names.

    Raises ValueError if there is no store, it is unusable, or it has no such arrays.
    """
    path = data or task.demonstrations()
    if path is None:
        raise CommandError(f"task={task.name} has no demonstrations of its own; name a store with data=")
    if task.observations or obs is None:
        return open_store(path, task.columns)
    action = action or task.action
    require_keys(path, obs, action)
    named = [*obs.split(","), action]
    return open_store(path, dict.fromkeys(named, Column()), cameras=named)


def task_windows(
    task: Task, demos: Demonstrations, obs: str, layout: Layout, images: str = "stored", action: str | None = None
) -> Windows:
    """Windows of demonstrations as a policy sees them; images are `stored` or `rendered`.

    `action` is the key of the actions; None: the task's.

    Raises ValueError if the task has no such observation, or no episode is long enough.
    """
    if task.observations and not task.can_observe(obs):
        raise CommandError(unknown("obs", obs, task.observations))
    numbers, acted = task.observation(demos, obs), demos[action or task.action].reshape(len(demos), -1)
    return make_windows(numbers, acted, demos.episode_ends, layout, task.frames(demos, obs, images))


def task_of_store(path: Path) -> Task:
    """The task that a store says it shows; the default one if most of its arrays are there, else `none`."""
    try:
        stored, named = contents(path), attributes(path).get("task")
    except StoreError:  # those who read it will say so
        return find_task()
    if isinstance(named, str) and (named in BUILT_IN or named.startswith(MADE_FAMILY)):
        with suppress(CommandError):  # its package may not be installed here
            return find_task(named)
    task = find_task()
    needed = {key: column for key, column in task.columns.items() if column.required}
    fitting = [key for key, column in needed.items() if key in stored and column.fits(stored[key].shape[1:])]
    return task if 2 * len(fitting) > len(needed) else find_task("none")


def first_observation(task: Task, demos: Demonstrations) -> str:
    """What a policy of the task sees by default; where the task has no observations, all numbers but the actions."""
    keys = [key for key in demos.arrays if key != task.action]
    return task.observations[0] if task.observations else ",".join(keys)


def find_task(name: str = DEFAULT, **options: Any) -> Task:
    """Build a task: a built-in one, one of another package's entry points, or `my_lab.reach:Reach`.

    Of a family such as `metaworld/NAME`, what stands for the capitals is the first argument.

    Raises CommandError if the name is unknown, cannot be imported or is not a task, or an option is not the task's.
    """
    task = build("task", name, find_factory("task", GROUP, name, BUILT_IN), options)
    members = [member for member in (*Task.__annotations__, *vars(Task)) if not member.startswith("_")]
    lacking = [member for member in members if not hasattr(task, member)]
    if lacking:
        raise CommandError(f"task={name}: {type(task).__name__} has no {', '.join(lacking)}; derive it from Task")
    if not any(metric.summarised for metric in task.metrics):
        raise CommandError(f"task={name}: none of its metrics is summarised; the first that is, is the primary one")
    return task
