"""One run of `train_policy.py`, all its seeds: check, plan, train, summarise."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from immiscible_policy.cli import CommandError, parse_range, require_writable
from immiscible_policy.evaluation.plots import learning_curves, save_figure
from immiscible_policy.evaluation.rows import read_run, write_atomically
from immiscible_policy.evaluation.summary import markdown, scores, summarize
from immiscible_policy.policy.build import build_policy
from immiscible_policy.provenance import provenance
from immiscible_policy.training.config import TrainConfig, read_config
from immiscible_policy.training.display import Display
from immiscible_policy.training.run import Parts, build_parts, is_finished, seed_directory, train_seed
from immiscible_policy.training.workers import train_seeds


def train_and_summarise(config: TrainConfig) -> None:
    """Train every seed of a run, from the start or from where it stopped, and summarise it.

    Args:
        config: The resolved options.

    Raises:
        ValueError: If the options, the data or the run directory are unusable (nothing is written then), or if a
            seed failed; the others are trained and summarised all the same.
        OSError: If something cannot be written.
    """
    seeds = parse_range("seed", config.seed)
    directory = Path(str(config.out))
    resuming = _check_directory(directory, config)
    print(f"out={directory}", flush=True)
    finished = resuming and all(is_finished(config, directory, seed) for seed in seeds)
    if finished and (directory / "summary.json").exists():
        print(f"finished already: {len(seeds)} seed(s) at step {config.steps}; nothing to do")
        return
    parts = build_parts(config)
    if resuming:
        _check_data(directory, parts)
    print(_plan(config, parts, seeds), flush=True)
    if config.dry_run:
        print("dry run: nothing was written")
        return
    _write_config(directory, config, parts)
    (directory / "summary.json").unlink(missing_ok=True)  # whoever finds it finds all seeds in it
    failures = _train(config, parts, directory, seeds)
    if any((seed_directory(directory, seed) / "episodes.csv").exists() for seed in seeds):
        rows = read_run(directory)
        save_figure(learning_curves({directory.name: scores(rows.seeds)}), directory / "coverage.png")
        print(f"\n{markdown(directory.name, summarize(rows))}")
        print(f"saved in {directory}/summary.md, summary.json, coverage.png")
    if failures:
        raise CommandError("; ".join(failures.values()))


def _train(config: TrainConfig, parts: Parts, directory: Path, seeds: list[int]) -> dict[int, str]:
    """Train the seeds that are not finished; a single one here, several in processes of their own."""
    open_seeds = [seed for seed in seeds if not is_finished(config, directory, seed)]
    with Display(open_seeds, config.steps) as display:
        if len(seeds) > 1:
            return train_seeds(config, parts, directory, open_seeds, display.show)
        for seed in open_seeds:
            train_seed(config, parts, directory, seed, display.show)
        return {}


def _check_directory(directory: Path, config: TrainConfig) -> bool:
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
    earlier = read_config(directory / "config.yaml").identity
    for key, value in config.identity.items():
        if earlier[key] != value:
            raise CommandError(
                f"{key}={_show(value)} differs from the run in {directory}, which has {key}={_show(earlier[key])}; "
                "resume it with its own settings or name another out="
            )
    return True


def _check_data(directory: Path, parts: Parts) -> None:
    """Refuse to resume on demonstrations whose content has changed."""
    recorded = json.loads((directory / "provenance.json").read_text())["data"]["content_hash"]
    if recorded != parts.data_hash:
        raise CommandError(
            f"data={parts.demos.path} has changed since the run in {directory} began (content {parts.data_hash[:12]}, "
            f"then {recorded[:12]}); restore the data or name another out="
        )


def _write_config(directory: Path, config: TrainConfig, parts: Parts) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "config.yaml").exists():
        return
    data = {"path": str(parts.demos.path), "content_hash": parts.data_hash, "episodes": parts.demos.n_episodes}
    origin = json.dumps({**provenance(), "data": data}, indent=2) + "\n"
    write_atomically(directory / "provenance.json", origin.encode())
    write_atomically(directory / "config.yaml", config.to_yaml().encode())


def _plan(config: TrainConfig, parts: Parts, seeds: list[int]) -> str:
    """The resolved options and what will happen, for people."""
    with torch.device("meta"):  # sizes without memory
        parameters = sum(p.numel() for p in build_policy(parts.spec).parameters())
    evaluations = -(-config.steps // (config.eval_every or config.steps))
    epochs = config.steps * config.batch_size / len(parts.training)
    options = {key: value for key, value in asdict(config).items() if key not in ("resume", "dry_run")}
    lines = [f"  {key}: {_show(value)}" for key, value in options.items()]
    at_once = min(config.parallel or 1, len(seeds))
    return "\n".join(
        [
            "options:",
            *lines,
            f"data:   {parts.demos.path}: {len(parts.demos.episode_ends)} episodes, {len(parts.training):,} training "
            f"windows, content {parts.data_hash[:12]}",
            f"policy: {parameters:,} parameters, {config.precision} on {config.device}",
            f"plan:   seeds {', '.join(map(str, seeds))} ({at_once} at once, {config.threads} threads each of "
            f"{os.cpu_count()}); {config.steps:,} steps of {config.batch_size} windows ({epochs:.0f} epochs), "
            f"{evaluations} evaluations of {len(parts.starts)} starts",
        ]
    )


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_show(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
