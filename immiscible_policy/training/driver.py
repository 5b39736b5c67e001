"""The driver: checks, plans, trains, resumes and summarises all seeds of anything that is a `Recipe`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from immiscible_policy.cli import CommandError, parse_range, require_writable
from immiscible_policy.provenance import command_to_resume, commit, provenance
from immiscible_policy.store.run import RunDirectory, require_data
from immiscible_policy.training.display import Display
from immiscible_policy.training.duration import planned_time
from immiscible_policy.training.launchers import launch, require_launcher
from immiscible_policy.training.launchers.job import open_jobs
from immiscible_policy.training.memory import require_memory, seeds_at_once
from immiscible_policy.training.options import CLUSTERS, RunConfig
from immiscible_policy.training.processes import joined, process_group, require_shares
from immiscible_policy.training.recipe import Recipe
from immiscible_policy.training.seed import train_seed
from immiscible_policy.training.stopping import stoppable
from immiscible_policy.training.workers import require_guard, train_seeds

NAMED = 5
"""So many failures are named in the line that ends a command; all have been shown by then."""


def train_run(kind: type[Recipe], config: RunConfig, recipe: Recipe | None = None) -> None:
    """Train every seed of a run, from the start or from where it stopped, and summarise it.

    A recipe of these options that has been prepared already is used.

    Raises:
        ValueError: If the options, the data or the run directory are unusable (nothing is written then), or if a
            seed failed; the others are trained and summarised all the same.
        OSError: If something cannot be written.
        Interrupted: At SIGINT, SIGTERM and SIGHUP, once every seed has left a checkpoint.
    """
    seeds = parse_range("seed", config.seed)
    require_shares(config.batch_size, config.accumulate, seeds)
    if not config.is_sized:
        recipe = recipe or kind.prepare(config)
        config = recipe.config
    run = RunDirectory(str(config.out))
    if process_group().rank > 0:
        if not config.dry_run and not run.seed(seeds[0]).is_finished(config.steps):
            with stoppable(config), joined(config.device):
                train_seed(recipe or kind.prepare(config), run.seed(seeds[0]), lambda event: None)
        return
    require_launcher(config)
    recipe = begin(kind, config, recipe)
    if recipe is not None:
        with stoppable(config, command_to_resume(run.path, process_group().size)):
            failures = _train(recipe, run, seeds)
        conclude(kind, run, failures)


def begin(kind: type[Recipe], config: RunConfig, recipe: Recipe | None = None) -> Recipe | None:
    """Check a run, say what will be done, write its options, and return its recipe.

    None if there is nothing to train: the run is finished, or this is a dry run.

    Raises:
        ValueError: If the options, the data or the run directory are unusable; nothing is written then.
    """
    seeds = parse_range("seed", config.seed)
    run = RunDirectory(str(config.out))
    resuming = require_directory(kind, run, config)
    if resuming and run.is_finished(seeds, config.steps):
        run.require_own_seeds()
        print(f"out={run.path}\nfinished already: {len(seeds)} seed(s) at step {config.steps}; nothing to do")
        return None
    recipe = recipe or kind.prepare(config)
    if config.launcher == "local" and config.device == "cpu" and len(seeds) > 1:
        require_guard()
    config = recipe.config
    if resuming:
        config.seed = run.config["seed"]  # the same ones, as they were written first
    config.parallel = seeds_at_once(config, recipe.footprint)
    require_data(recipe.data["path"], recipe.data["content_hash"], run.data_hash if resuming else None)
    plan = [f"out={run.path}", _options(config, seeds), *recipe.describe(), require_memory(config, recipe.footprint)]
    print(*plan, sep="\n", flush=True)
    if config.launcher not in CLUSTERS and (rehearsal := recipe.rehearsal(config.device)) is not None:
        print(planned_time(config, rehearsal), flush=True)
    longer = resuming and config.steps > run.config["steps"]
    if longer:
        law = f"lr_schedule={config.lr_schedule} over {config.steps:,} steps, as if planned from the start"
        print(f"longer: {run.config['steps']:,} steps were planned; the learning rate follows {law}")
    if config.dry_run:
        print("dry run: nothing was written")
        return None
    open_seeds = [run.seed(seed) for seed in seeds if not run.seed(seed).is_finished(config.steps)]
    if config.launcher == "local" and open_seeds and all(seed.is_locked for seed in open_seeds):
        raise CommandError(f"{run.path} is being trained by another process; wait for it or stop it")
    if longer:
        run.extend(config.to_yaml(), provenance()["command"])
    if not resuming:
        began = datetime.now(UTC).isoformat()
        run.begin(config.to_yaml(), {**provenance(), "began": began, "data": recipe.data})
    elif open_seeds:
        run.note_commit(commit())
    run.forget_summary()
    return recipe


def conclude(kind: type[Recipe], run: RunDirectory, failures: Sequence[str]) -> None:
    """Summarise a run; then, if some of its seeds failed, raise a CommandError of their lines."""
    if summary := kind.summarise(run):
        print(f"\n{summary}")
    if failures:
        more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
        raise CommandError("; ".join(failures[:NAMED]) + more)


def _train(recipe: Recipe, run: RunDirectory, seeds: list[int]) -> list[str]:
    """Train the seeds that are not finished; a single one here, several side by side. Returns why seeds failed."""
    config = recipe.config
    if config.launcher != "local":
        return list(launch(config, open_jobs(recipe), recipe.shown).values())
    unfinished = [run.seed(seed) for seed in seeds if not run.seed(seed).is_finished(config.steps)]
    with Display({seed.number: config.steps for seed in unfinished}, recipe.shown) as display:
        if len(seeds) > 1:
            return list(train_seeds(recipe, unfinished, display.show).values())
        for seed in unfinished:
            with joined(config.device):
                train_seed(recipe, seed, display.show)
        return []


def require_directory(kind: type[Recipe], run: RunDirectory, config: RunConfig) -> bool:
    """Refuse to write over anything, by a CommandError; return whether there is a run of these options to resume."""
    directory = run.path
    require_writable("out", directory)
    if directory.exists() and not directory.is_dir():
        raise CommandError(f"out={directory} is a file; name a directory")
    if not run.exists and not run.is_free:
        raise CommandError(f"out={directory} contains other files; name an empty or a new directory")
    if not run.exists:
        return False
    if not config.resume:
        raise CommandError(f"out={directory} has a run already; continue it with resume=true or name another out=")
    earlier = kind.schema.read(run).identity
    if config.steps < earlier["steps"]:
        have = f"the run in {directory} has {earlier['steps']} steps"
        raise CommandError(f"steps={config.steps}: {have}; use resume={directory}, or more steps to train it further")
    same = {"steps"} | ({"data"} if run.data_hash else set())  # its content is compared later
    if parse_range("seed", config.seed) == parse_range("seed", earlier["seed"]):
        same.add("seed")
    for key, value in config.identity.items():
        if earlier[key] != value and key not in same:
            recorded = f"the run in {directory}, which has {key}={_show(earlier[key])}"
            cure = "resume it with its own settings or name another out="
            raise CommandError(f"{key}={_show(value)} differs from {recorded}; {cure}")
    return True


def _options(config: RunConfig, seeds: list[int]) -> str:
    """The resolved options, for people."""
    unused = config.unused
    options = {key: value for key, value in asdict(config).items() if key not in unused}
    side_by_side = (
        f"({min(config.parallel or 1, len(seeds))} at once, {config.threads} threads each of {os.cpu_count()})"
    )
    if config.launcher in CLUSTERS:
        side_by_side = f"({config.threads} threads each, where {config.launcher} finds room)"
    lines = [f"  {key}: {_show(value)}" for key, value in options.items()]
    return "\n".join(["options:", *lines, f"seeds:  {', '.join(map(str, seeds))} {side_by_side}"])


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_show(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
