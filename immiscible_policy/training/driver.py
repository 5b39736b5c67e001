"""The driver: one run of a training command, all its seeds. It checks, plans, trains, resumes and summarises.

It trains anything that is a `Recipe`, and knows nothing of what a recipe is made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, parse_range, require_writable
from immiscible_policy.provenance import provenance
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.training.display import Display
from immiscible_policy.training.launchers import launch, require_launcher
from immiscible_policy.training.launchers.job import open_jobs
from immiscible_policy.training.options import CLUSTERS, RunConfig
from immiscible_policy.training.processes import joined, process_group, require_shares
from immiscible_policy.training.recipe import Recipe
from immiscible_policy.training.seed import is_finished, train_seed
from immiscible_policy.training.workers import train_seeds

NAMED = 5
"""So many failures are named in the line that ends a command; all have been shown by then."""


def train_run(kind: type[Recipe], config: RunConfig, prepare: Callable[[], Recipe] | None = None) -> None:
    """Train every seed of a run, from the start or from where it stopped, and summarise it.

    Args:
        kind: The kind of recipe.
        config: The resolved options.
        prepare: Returns the recipe of these options where it exists already; None: `kind.prepare`.

    Raises:
        ValueError: If the options, the data or the run directory are unusable (nothing is written then), or if a
            seed failed; the others are trained and summarised all the same.
        OSError: If something cannot be written.
    """
    seeds = parse_range("seed", config.seed)
    require_shares(config.batch_size, config.accumulate, seeds)
    directory = Path(str(config.out))
    if process_group().rank > 0:
        if not config.dry_run and not is_finished(config, directory, seeds[0]):
            with joined(config.device):
                train_seed(kind.prepare(config), directory, seeds[0], lambda event: None)
        return
    require_launcher(config)
    recipe = begin(kind, config, prepare)
    if recipe is not None:
        conclude(kind, directory, _train(recipe, directory, seeds))


def begin(kind: type[Recipe], config: RunConfig, prepare: Callable[[], Recipe] | None = None) -> Recipe | None:
    """Check a run, say what will be done, and write its options.

    Returns:
        The recipe; None if nothing is to be trained: the run is finished, or this is a dry run.

    Raises:
        ValueError: If the options, the data or the run directory are unusable; nothing is written then.
        OSError: If something cannot be written.
    """
    seeds = parse_range("seed", config.seed)
    directory = Path(str(config.out))
    resuming = _check_directory(kind, directory, config)
    print(f"out={directory}", flush=True)
    finished = resuming and all(is_finished(config, directory, seed) for seed in seeds)
    if finished and (directory / "summary.json").exists():
        print(f"finished already: {len(seeds)} seed(s) at step {config.steps}; nothing to do")
        return None
    recipe = prepare() if prepare else kind.prepare(config)
    if resuming:
        _check_data(directory, recipe.data)
    print(_options(config, seeds), *recipe.describe(), sep="\n", flush=True)
    if config.dry_run:
        print("dry run: nothing was written")
        return None
    directory.mkdir(parents=True, exist_ok=True)
    if not resuming:
        origin = json.dumps({**provenance(), "data": recipe.data}, indent=2) + "\n"
        write_atomically(directory / "provenance.json", origin.encode())
        write_atomically(directory / "config.yaml", config.to_yaml().encode())
    (directory / "summary.json").unlink(missing_ok=True)  # it stands for all seeds together
    return recipe


def conclude(kind: type[Recipe], directory: Path, failures: Sequence[str]) -> None:
    """Summarise a run whose seeds were trained, or failed.

    Raises:
        CommandError: If there are failures: their lines, once the others are summarised.
    """
    summary = kind.summarise(directory)
    if summary:
        print(f"\n{summary}")
    if failures:
        more = [f"and {len(failures) - NAMED} more"] if len(failures) > NAMED else []
        raise CommandError("; ".join([*failures[:NAMED], *more]))


def _train(recipe: Recipe, directory: Path, seeds: list[int]) -> list[str]:
    """Train the seeds that are not finished; a single one here, several side by side. Returns why seeds failed."""
    config = recipe.config
    if config.launcher != "local":
        return list(launch(config, open_jobs(recipe, seeds), recipe.shown).values())
    unfinished = [seed for seed in seeds if not is_finished(config, directory, seed)]
    with Display(unfinished, config.steps, recipe.shown) as display:
        if len(seeds) > 1:
            return list(train_seeds(recipe, directory, unfinished, display.show).values())
        for seed in unfinished:
            with joined(config.device):
                train_seed(recipe, directory, seed, display.show)
        return []


def _check_directory(kind: type[Recipe], directory: Path, config: RunConfig) -> bool:
    """Refuse to write over anything; return whether there is a run to resume.

    Raises:
        CommandError: If the directory holds something else, a run without `resume=true`, or a run of other settings.
    """
    require_writable("out", directory)
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise CommandError(f"out={directory} is a file; name a directory")
    if not (directory / "config.yaml").exists():
        own = ("provenance.json", ".provenance.json.", ".config.yaml.")  # of a start that was cut short
        if not all(path.name.startswith(own) for path in directory.iterdir()):
            raise CommandError(f"out={directory} holds other files; name an empty or a new directory")
        return False
    if not config.resume:
        raise CommandError(f"out={directory} holds a run already; continue it with resume=true or name another out=")
    earlier = kind.schema.read(directory / "config.yaml").identity
    for key, value in config.identity.items():
        if earlier[key] != value:
            raise CommandError(
                f"{key}={_show(value)} differs from the run in {directory}, which has {key}={_show(earlier[key])}; "
                "resume it with its own settings or name another out="
            )
    return True


def _check_data(directory: Path, data: dict[str, Any]) -> None:
    """Refuse to resume on data whose content has changed."""
    recorded = json.loads((directory / "provenance.json").read_text())["data"]["content_hash"]
    content = data["content_hash"]
    if recorded != content:
        raise CommandError(
            f"data={data['path']} has changed since the run in {directory} began (content {content[:12]}, "
            f"then {recorded[:12]}); restore the data or name another out="
        )


def _options(config: RunConfig, seeds: list[int]) -> str:
    """The resolved options, for people."""
    options = {key: value for key, value in asdict(config).items() if key not in ("resume", "dry_run")}
    at_once = min(config.parallel or 1, len(seeds))
    side_by_side = f"({at_once} at once, {config.threads} threads each of {os.cpu_count()})"
    if config.launcher in CLUSTERS:
        side_by_side = f"({config.threads} threads each, where {config.launcher} finds room)"
    lines = [f"  {key}: {_show(value)}" for key, value in options.items()]
    return "\n".join(["options:", *lines, f"seeds:  {', '.join(map(str, seeds))} {side_by_side}"])


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_show(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
