"""A grid of runs: an experiment with arms, or words with several values; `out=DIR` holds one plain run for each arm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, require_writable, split_words, unknown
from immiscible_policy.store.run import SETTINGS_OF_PLACE, RunDirectory, require_data
from immiscible_policy.training.options import Schema, directory_name, group_choices, in_name, read_file, read_value
from immiscible_policy.training.processes import process_group


@dataclass(frozen=True)
class Grid:
    """Runs that differ in a few words: the options of each arm, the first being what the others are compared with.

    `before` are those of the arms that were trained before and are left as they are: they stand in the table.
    `evaluation` says how a grid of images is measured. `published` is what a paper reports, by metric, arm and kind,
    and `protocol` the options behind it; `contrasts` are the arms named for the test.
    """

    name: str
    out: Path
    arms: dict[str, Any]
    before: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    contrasts: list[str] = field(default_factory=list)


def read_grid(words: Sequence[str], schema: Schema[Any]) -> Grid | None:
    """The grid that command-line words ask for, every arm checked, or None if they ask for a single run.

    Words with several values such as `k=2,4` make a grid too: each value is an arm.

    Raises:
        CommandError: As `Schema.compose`, for words that the arms decide themselves, and for unknown `arms=`.
    """
    given, directory = split_words(words, schema.synonyms), schema.groups["experiment"]
    wanted = given.pop("arms", "")
    experiment = given.get("experiment")
    written = read_file(f"{directory}/{experiment}") if experiment in group_choices(directory) else {}
    evaluation = _evaluation(written.get("evaluation", {}), given)
    swept, arms = schema.swept(given), written.get("arms", {})
    for key, values in swept.items():
        if key in SETTINGS_OF_PLACE:
            raise CommandError(f"{key}={','.join(values)}: it changes no result; give it one value")
        if given.get("resume", "true").lower() not in ("true", "false"):
            raise CommandError(f"{key}={','.join(values)}: resume={given['resume']} continues one run; give one value")
        if len(set(values)) < len(values):
            raise CommandError(f"{key}={','.join(values)}: a value is given twice")
    if arms:
        _refuse_decided(given, swept, arms)
    elif wanted:
        raise CommandError(f"arms={wanted}: only an experiment with arms has some to pick from")
    elif not swept:
        return None
    names = wanted.split(",") if wanted else list(arms)
    for arm in names:
        if arm not in arms:
            raise CommandError(unknown("arm", arm, list(arms)))
    adjusting = set().union(*schema.adjusting(swept, given).values())
    one = arms[names[0]] if names and isinstance(arms[names[0]], list) else []  # what all share may suit its arms alone
    fixed = _words({key: text for key, text in given.items() if key not in swept.keys() | adjusting})
    single = _single(fixed, one, swept, schema)
    several = swept | {key: [text] for key, text in given.items() if key in adjusting - swept.keys()}
    name, out = str(experiment), str(single.out)
    if swept:
        name = directory_name([in_name(key, values) for key, values in several.items()])
        out = given.get("out", f"{out}_{name}")
    preset = split_words(written.get("by_scale", {}).get(single.scale, []))
    shared = {key: text for key, text in (preset | given).items() if key not in (*several, "out", "resume")}
    before = [arm for arm in arms if arm not in names and RunDirectory(Path(out) / arm).exists]
    chosen = {
        arm: own if isinstance(own, list) else own[single.scale]
        for arm, own in arms.items()
        if arm in (*names, *before)
    }
    table = {} if swept else {key: written[key] for key in ("published", "protocol", "contrasts") if key in written}
    grid = Grid(name, Path(out), {}, before, evaluation, **table)
    chosen |= _combined(swept, several, schema) if swept else {}
    for arm, own in chosen.items():
        with _of(grid, arm):
            grid.arms[arm] = replace(schema.compose([*_words(shared), *own, f"out={grid.out / arm}"]), resume=True)
    for key in set(swept).intersection(*(config.unused for config in grid.arms.values())):
        raise CommandError(f"{key}={','.join(swept[key])}: no arm uses it; leave it out")
    return grid


@contextmanager
def _of(grid: Grid, arm: str) -> Iterator[None]:
    """A context in which what is wrong with an arm that was trained before says so, and what to do."""
    try:
        yield
    except CommandError as error:
        if arm not in grid.before:
            raise
        why = f"{arm} was trained there before with other options ({error})"
        raise CommandError(f"out={grid.out}: {why}; name another out=") from None


def _single(fixed: list[str], one: list[str], swept: Mapping[str, list[str]], schema: Schema[Any]) -> Any:
    """The options that all arms share, as a training by itself has them, or one with the first of all values."""
    try:
        return schema.compose([*fixed, *one])
    except CommandError:
        if not swept:
            raise
        return schema.compose([*fixed, *(f"{key}={values[0]}" for key, values in swept.items())])


def _combined(
    swept: Mapping[str, list[str]], several: Mapping[str, list[str]], schema: Schema[Any]
) -> dict[str, list[str]]:
    """The words of each arm by its name: every combination of the values of `several` words.

    An option that only some selectors or tasks take, such as `k` beside `noise=vanilla,knn`, is left out of the others.
    """
    arms = {}
    for texts in product(*several.values()):
        values = dict(zip(several, texts, strict=True))
        some, own = schema.adjusting(swept, values), schema.adjusting({key: [values[key]] for key in swept}, values)
        left_out = {key for word in some for key in some[word] - own[word]}
        taken = {key: text for key, text in values.items() if key not in left_out}
        names = [text if key == "noise" else f"{key}{'' if text[:1].isdigit() else '-'}{text}"
                 for key, text in taken.items() if key in swept]  # fmt: skip
        arms[directory_name(names)] = _words(taken)
    return arms


def _evaluation(written: Mapping[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """An experiment's `evaluation` with what words such as `evaluation.samples=500` change, taken out of the words."""
    changed = dict(written)
    for word in [word for word in given if word.startswith("evaluation.")]:
        key, text = word.partition(".")[2], given.pop(word)
        if key not in written:
            raise CommandError(unknown("option", word, [f"evaluation.{known}" for known in written]))
        changed[key] = read_value(word, text)
        if not isinstance(changed[key], type(written[key])):
            raise CommandError(f"{word}={text}: write it as evaluation.{key}={written[key]}".replace("'", ""))
    return changed


def _refuse_decided(given: Mapping[str, str], swept: Collection[str], arms: Mapping[str, Any]) -> None:
    """Refuse words that the arms of an experiment decide themselves, and words with several values beside them."""
    variants = [words for own in arms.values() for words in (own.values() if isinstance(own, dict) else [own])]
    decided = {word.partition("=")[0] for words in variants for word in words}
    experiment = f"experiment={given['experiment']}"
    for key, text in given.items():
        if key in decided:
            raise CommandError(f"{key}={text}: the arms of {experiment} decide that themselves ({', '.join(arms)})")
        if key in swept:
            raise CommandError(f"{key}={text}: {experiment} has arms of its own; give {key}= one value")


def _words(given: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in given.items()]


def train_grid(
    grid: Grid,
    kind: Any,
    write: Callable[[Grid, Mapping[str, Any]], str],
    check: Callable[[Grid, Mapping[str, Any]], None] = lambda grid, recipes: None,
) -> None:
    """Train the arms, from the start or from where they stopped, skip what is finished, and write the grid's table.

    `kind` is the `Recipe` of the arms; `write` makes the table of a grid and its recipes by arm, and `check`
    raises a ValueError before any training if it could not. With `launcher=local` arm after arm is trained; any other
    launcher is given the jobs of all arms at once.

    Raises:
        ValueError: If an arm's options, data or directory are unusable (nothing is trained or written then), or if
            the training of one failed; the others are trained all the same.
        OSError: If something cannot be written.
    """
    from immiscible_policy.provenance import command
    from immiscible_policy.training.driver import begin, conclude, train_run
    from immiscible_policy.training.launchers import launch, require_launcher
    from immiscible_policy.training.launchers.job import open_jobs
    from immiscible_policy.training.stopping import stoppable

    first = next(iter(grid.arms.values()))
    require_launcher(first)
    require_writable("out", grid.out / grid.name)
    if RunDirectory(grid.out).exists:
        raise CommandError(
            f"out={grid.out} has a run already, and a grid needs a directory of its own; name another out="
        )
    load = cache(kind.load)  # arms share their data
    # What is wrong with any arm is said before the first is trained.
    recipes = {arm: kind.prepare(options, load) for arm, options in grid.arms.items()}
    check(grid, recipes)
    if process_group().rank == 0:
        _require_directories(grid, kind, recipes)
    failures: list[str] = []
    jobs, failed = {}, {}
    with stoppable(first, command()):
        for arm, recipe in recipes.items():
            if arm in grid.before:
                continue
            with _noted(arm, failures):
                if first.launcher == "local":
                    train_run(kind, recipe.config, recipe)
                elif begin(kind, recipe.config, recipe) is not None:
                    jobs[arm] = open_jobs(recipe)
        if first.launcher != "local":
            print(flush=True)
            first.parallel = min((own.config.parallel for own in recipes.values() if own.config.parallel), default=1)
            failed = launch(first, [job for own in jobs.values() for job in own], next(iter(recipes.values())).shown)
    if first.launcher != "local":
        for arm, own in jobs.items():
            with _noted(arm, failures):
                run = RunDirectory(str(recipes[arm].config.out))
                conclude(kind, run, [failed[job] for job in own if job in failed])
    if not first.dry_run and process_group().rank == 0:
        print(f"\n{write(grid, recipes)}")
    if failures:
        raise CommandError("; ".join(failures))


def _require_directories(grid: Grid, kind: Any, recipes: Mapping[str, Any]) -> None:
    """Refuse arms whose directories hold runs of other options or data, before the first is trained.

    The table would call what these are by the options of this command.
    """
    from immiscible_policy.training.driver import require_directory

    for arm, recipe in recipes.items():
        run = RunDirectory(str(recipe.config.out))
        try:
            with _of(grid, arm):
                if require_directory(kind, run, recipe.config):
                    require_data(recipe.data["path"], recipe.data["content_hash"], run.data_hash)
                if arm in grid.before and (steps := run.config["steps"]) != recipe.config.steps:
                    raise CommandError(f"steps={steps}")
        except CommandError as error:
            raise CommandError(str(error) if arm in grid.before else f"{arm}: {error}") from None


@contextmanager
def _noted(arm: str, failures: list[str]) -> Iterator[None]:
    """A context in which what stops one arm is said and noted, and the others go on."""
    print(f"\n{arm}: ", end="", flush=True)
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", flush=True)
        failures.append(f"{arm}: {error}")
