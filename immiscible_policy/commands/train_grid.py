"""A grid of runs: an experiment with arms, `out=DIR` holding one plain run directory for each, DIR/<arm>/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from immiscible_policy.cli import CommandError, parse_range, unknown
from immiscible_policy.recipes.robot_config import TrainConfig, compose_config
from immiscible_policy.training.options import config_dir

if TYPE_CHECKING:
    from immiscible_policy.recipes.robot import RobotRecipe


@dataclass(frozen=True)
class Grid:
    """Runs that differ in a few words.

    Attributes:
        name: The experiment.
        out: Directory of all arms.
        arms: Resolved options of each arm; the first is what the others are compared with.
    """

    name: str
    out: Path
    arms: dict[str, TrainConfig]


def read_grid(words: Sequence[str]) -> Grid | None:
    """The grid that command-line words ask for, every arm checked, or None if they ask for a single run.

    Raises:
        CommandError: As `compose_config`, for words that the arms decide themselves, and for unknown `arms=`.
    """
    name = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "")
    experiment = _read(name)
    written: dict[str, Any] = experiment.get("arms", {})
    if not written:
        return None
    words, wanted = _wanted(words, list(written))
    written = {arm: each for arm, each in written.items() if arm in wanted}
    variants = [each if isinstance(each, dict) else {"": each} for each in written.values()]
    own = {word.partition("=")[0] for by_scale in variants for each in by_scale.values() for word in each}
    for word in words:
        if word.partition("=")[0] in own:
            raise CommandError(f"{word}: the arms of experiment={name} decide that themselves ({', '.join(written)})")
    single = compose_config(list(words))
    arms = {arm: each if isinstance(each, list) else each[single.scale] for arm, each in written.items()}
    given = {word.partition("=")[0] for word in words}
    preset = experiment.get("by_scale", {}).get(single.scale, [])
    shared = [word for word in words if not word.startswith(("out=", "resume="))]
    shared += [word for word in preset if word.partition("=")[0] not in given]
    out = Path(str(single.out))
    return Grid(name, out, {
        arm: replace(compose_config([*shared, *each]), out=str(out / arm), resume=True) for arm, each in arms.items()
    })  # fmt: skip


def train_grid(grid: Grid) -> None:
    """Train every arm, from the start or from where it stopped, skip what is finished, and write the grid's table.

    With `launcher=local` arm after arm; any other launcher is given the jobs of all arms at once.

    Raises:
        ValueError: If an arm's options, data or directory are unusable (the others are trained all the same).
        OSError: If something cannot be written.
    """
    from immiscible_policy.recipes.robot import RobotRecipe, load_data
    from immiscible_policy.results.grid import write_grid
    from immiscible_policy.training.launchers import require_launcher

    config = next(iter(grid.arms.values()))
    require_launcher(config)
    load = cache(load_data)  # arms share their data
    # What is wrong with any arm is said before the first is trained.
    recipes = {arm: RobotRecipe.prepare(options, load) for arm, options in grid.arms.items()}
    failures = _arm_after_arm(recipes) if config.launcher == "local" else _all_at_once(recipes)
    if not config.dry_run:
        print(f"\n{write_grid(grid.out, grid.name, list(grid.arms), parse_range('seed', config.seed))}")
    if failures:
        raise CommandError("; ".join(failures))


def _arm_after_arm(recipes: Mapping[str, RobotRecipe]) -> list[str]:
    """Train the arms in their order; returns a line for each that failed."""
    from immiscible_policy.recipes.robot import RobotRecipe
    from immiscible_policy.training.driver import train_run

    failures: list[str] = []
    for arm, recipe in recipes.items():
        with _noted(arm, failures):
            train_run(RobotRecipe, recipe.config, partial(recipes.__getitem__, arm))
    return failures


def _all_at_once(recipes: Mapping[str, RobotRecipe]) -> list[str]:
    """Launch the jobs of all arms together; returns a line for each arm that failed."""
    from immiscible_policy.recipes.robot import RobotRecipe
    from immiscible_policy.training.driver import begin, conclude
    from immiscible_policy.training.launchers import launch
    from immiscible_policy.training.launchers.job import open_jobs
    from immiscible_policy.training.workers import Job

    failures: list[str] = []
    jobs: dict[str, list[Job]] = {}
    for arm, recipe in recipes.items():
        with _noted(arm, failures):
            if begin(RobotRecipe, recipe.config, partial(recipes.__getitem__, arm)) is not None:
                jobs[arm] = open_jobs(recipe, parse_range("seed", recipe.config.seed))
    print(flush=True)
    first = next(iter(recipes.values()))
    failed = launch(first.config, [job for arm in jobs.values() for job in arm], first.shown)
    for arm, own in jobs.items():
        with _noted(arm, failures):
            conclude(RobotRecipe, Path(str(recipes[arm].config.out)), [failed[job] for job in own if job in failed])
    return failures


@contextmanager
def _noted(arm: str, failures: list[str]) -> Iterator[None]:
    """A context in which what stops one arm is said and noted, and the others go on."""
    print(f"\n{arm}: ", end="", flush=True)
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", flush=True)
        failures.append(f"{arm}: {error}")


def _wanted(words: Sequence[str], arms: list[str]) -> tuple[list[str], list[str]]:
    """The words without `arms=`, and the arms that it names; all where there is none.

    Raises:
        CommandError: If it names an arm that the experiment has not.
    """
    named = [word.partition("=")[2].split(",") for word in words if word.startswith("arms=")]
    for arm in (arm for names in named for arm in names):
        if arm not in arms:
            raise CommandError(unknown("arm", arm, arms))
    rest = [word for word in words if not word.startswith("arms=")]
    return rest, [arm for names in named for arm in names] or arms


def _read(experiment: str) -> dict[str, Any]:
    """An experiment's file. `arms`: the words of each arm, or its words by scale; `by_scale`: words of all arms."""
    file = config_dir() / "experiment" / f"{experiment}.yaml"
    return (yaml.safe_load(file.read_text()) or {}) if experiment and file.exists() else {}
