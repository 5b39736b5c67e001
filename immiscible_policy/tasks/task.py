"""What a task is to the rest of the project: an environment, its starts and metrics, and its demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from immiscible_policy.cli import CommandError, parse_range
from immiscible_policy.extensions import build, find_factory

GROUP = "immiscible_policy.tasks"
"""Entry-point group in which other packages register tasks."""
BUILT_IN = {"pusht": "immiscible_policy.tasks.pusht:PushT"}
FIRST_START = {"legacy": 100_000, "fresh": 200_000}
"""Where a named list of starts begins; no checkpoint is chosen on `fresh`."""
LARGEST_START = 2**32 - 1

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """One number that an episode is scored by.

    Attributes:
        name: What summaries and reports call it, such as `coverage`.
        column: Its column in episodes.csv, such as `max_coverage`.
        reduce: Over the steps of an episode. `max` counts the reset as well; `any` gives 0 or 1.
        read: (reward (N,), info) -> value (N,) after a step. At the reset the reward is NaN, which `max` ignores.
        low: Smallest possible value.
        high: Largest possible value.
        summarised: Whether summaries and reports show it.
    """

    name: str
    column: str
    reduce: Literal["max", "last", "any", "sum"]
    read: Callable[[Array, Mapping[str, Array]], Array]
    low: float = 0.0
    high: float = 1.0
    summarised: bool = True


class Task(Protocol):
    """What a policy is trained for and scored on.

    A task derives from this class, states `name`, `max_steps`, `metrics` and `observations`, and writes
    `observation` and `make`; the other methods have a default. `name` is what `task=` says.

    Attributes:
        name: As `task=` names it.
        title: As reports name it.
        about: One sentence for a reader who has never seen the task: what it is, what the primary metric says.
        measured: The primary metric in the middle of a sentence, such as `coverage of the goal`.
        max_steps: Steps after which an episode ends.
        fps: Steps per second, of demonstrations and videos.
        metrics: What an episode is scored by; the first summarised one is the primary metric.
        observations: What `obs=` may name, the default first.
        action: Key of the actions in the demonstrations.
    """

    name: str
    title: str
    about: str
    measured: str
    max_steps: int
    metrics: tuple[Metric, ...]
    observations: tuple[str, ...]
    fps: int = 10
    action: str = "action"

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """Build the environments that a policy with this observation acts in.

        Autoreset is DISABLED or NEXT_STEP: what follows an episode's end is not looked at.
        """
        ...

    def reset_options(self, starts: Sequence[int]) -> dict[str, Array]:
        """Options of `reset` that begin the episodes `starts` (N,), one row each; `seed=starts` is given as well."""
        return {}

    def starts(self, text: str, episodes: int) -> list[int]:
        """Read `legacy`, `fresh`, or start seeds such as `100000..100008` or `3,5,8`.

        Args:
            text: What to evaluate on.
            episodes: Number of starts for `legacy` and `fresh`; the others name each start themselves.

        Raises:
            CommandError: If the text is none of these or there is no episode.
        """
        if episodes < 1:
            raise CommandError(f"episodes={episodes}: needs 1 or more")
        if text in FIRST_START:
            return list(range(FIRST_START[text], FIRST_START[text] + episodes))
        try:
            starts = parse_range("starts", text)
        except CommandError as error:
            raise CommandError(f"{error}, or {', or '.join(FIRST_START)}") from None
        if max(starts) > LARGEST_START:
            raise CommandError(f"starts={text}: a start seed is at most {LARGEST_START}")
        return starts

    def demonstrations(self) -> Path | None:
        """The store to train on unless `data=` names another; None if there is none."""
        return None


def primary(task: Task) -> Metric:
    """The metric that checkpoints are chosen by and runs are compared on."""
    return next(metric for metric in task.metrics if metric.summarised)


def find_task(name: str, **options: Any) -> Task:
    """Build a task: a built-in one, one of another package's entry points, or `module:Class`.

    Args:
        name: Such as `pusht` or `my_lab.reach:Reach`.
        **options: What the task's constructor takes.

    Raises:
        CommandError: If the name is unknown, cannot be imported or is no task, or an option is not the task's.
    """
    task = build("task", name, find_factory("task", GROUP, name, BUILT_IN), options)
    members = [member for member in (*Task.__annotations__, *vars(Task)) if not member.startswith("_")]
    lacking = [member for member in members if not hasattr(task, member)]
    if lacking:
        raise CommandError(f"task={name}: {type(task).__name__} has no {', '.join(lacking)}; derive it from Task")
    if not any(metric.summarised for metric in task.metrics):
        raise CommandError(f"task={name}: none of its metrics is summarised; the first that is, is the primary one")
    return task
