"""One run of a training command, all its seeds: check, plan, train, summarise."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, parse_range, require_writable
from immiscible_policy.provenance import provenance
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.training.display import Display
from immiscible_policy.training.launchers import launch, require_launcher
from immiscible_policy.training.launchers.job import open_jobs
from immiscible_policy.training.options import CLUSTERS, Config, RunConfig
from immiscible_policy.training.processes import joined, require_shares, world
from immiscible_policy.training.seed import is_finished
from immiscible_policy.training.training import P, Training
from immiscible_policy.training.workers import train_seeds

NAMED = 5
"""So many failures are named in the line that ends a command; all have been shown by then."""


def train_and_summarise(training: Training[Config, P], config: Config) -> None:
    """Train every seed of a run, from the start or from where it stopped, and summarise it.

    Args:
        training: The kind of training.
        config: The resolved options.

    Raises:
        ValueError: If the options, the data or the run directory are unusable (nothing is written then), or if a
            seed failed; the others are trained and summarised all the same.
        OSError: If something cannot be written.
    """
    seeds = parse_range("seed", config.seed)
    require_shares(config.batch_size, config.accumulate, seeds)
    directory = Path(str(config.out))
    if world().rank > 0:
        _follow(training, config, directory, seeds[0])
        return
    require_launcher(config)
    parts = prepare(training, config)
    if parts is not None:
        conclude(training, directory, _train(training, config, parts, directory, seeds))


def prepare(training: Training[Config, P], config: Config) -> P | None:
    """Check a run, say what will be done, and write its options.

    Returns:
        What the options build; None if nothing is to be trained: the run is finished, or this is a dry run.

    Raises:
        ValueError: If the options, the data or the run directory are unusable; nothing is written then.
        OSError: If something cannot be written.
    """
    seeds = parse_range("seed", config.seed)
    directory = Path(str(config.out))
    resuming = _check_directory(training, directory, config)
    print(f"out={directory}", flush=True)
    finished = resuming and all(is_finished(config, directory, seed) for seed in seeds)
    if finished and (directory / "summary.json").exists():
        print(f"finished already: {len(seeds)} seed(s) at step {config.steps}; nothing to do")
        return None
    parts = training.build(config)
    data = training.data(config, parts)
    if resuming:
        _check_data(directory, data)
    print(_options(config, seeds), *training.plan(config, parts), sep="\n", flush=True)
    if config.dry_run:
        print("dry run: nothing was written")
        return None
    _write_config(directory, config, data)
    (directory / "summary.json").unlink(missing_ok=True)  # whoever finds it finds all seeds in it
    return parts


def conclude(training: Training[Any, Any], directory: Path, failures: Sequence[str]) -> None:
    """Summarise a run whose seeds were trained, or failed.

    Raises:
        CommandError: If there are failures: their lines, once the others are summarised.
    """
    summary = training.summarise(directory)
    if summary:
        print(f"\n{summary}")
    if failures:
        more = [f"and {len(failures) - NAMED} more"] if len(failures) > NAMED else []
        raise CommandError("; ".join([*failures[:NAMED], *more]))


def _follow(training: Training[Config, P], config: Config, directory: Path, seed: int) -> None:
    """What a process does that is not the first: it trains on its rows, silently, unless the seed is finished."""
    if config.dry_run or is_finished(config, directory, seed):
        return
    parts = training.build(config)
    with joined(config.device):
        training.train_seed(config, parts, directory, seed, lambda event: None)


def _train(training: Training[Config, P], config: Config, parts: P, directory: Path, seeds: list[int]) -> list[str]:
    """Train the seeds that are not finished; a single one here, several in processes of their own."""
    if config.launcher != "local":
        return list(launch(config, open_jobs(training, config, seeds)).values())
    open_seeds = [seed for seed in seeds if not is_finished(config, directory, seed)]
    with Display(open_seeds, config.steps) as display:
        if len(seeds) > 1:
            return list(train_seeds(training, config, parts, directory, open_seeds, display.show).values())
        for seed in open_seeds:
            with joined(config.device):
                training.train_seed(config, parts, directory, seed, display.show)
        return []


def _check_directory(training: Training[Config, Any], directory: Path, config: Config) -> bool:
    """Refuse to write over anything; tell whether there is a run to resume.

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
    earlier = training.schema.read(directory / "config.yaml").identity
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
    found = data["content_hash"]
    if recorded != found:
        raise CommandError(
            f"data={data['path']} has changed since the run in {directory} began (content {found[:12]}, "
            f"then {recorded[:12]}); restore the data or name another out="
        )


def _write_config(directory: Path, config: RunConfig, data: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "config.yaml").exists():
        return
    origin = json.dumps({**provenance(), "data": data}, indent=2) + "\n"
    write_atomically(directory / "provenance.json", origin.encode())
    write_atomically(directory / "config.yaml", config.to_yaml().encode())


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
