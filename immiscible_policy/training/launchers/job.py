"""Launched jobs: which are open, running one on the machine it was given to, and what each asks for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, expanded, parse_range
from immiscible_policy.store.reading import read_yaml
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.loggers import chosen_loggers
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.recipe import Recipe, recipe_name
from immiscible_policy.training.stopping import STOP
from immiscible_policy.training.workers import Ending, Job, in_process

PATIENCE = 300.0
"""Seconds that a job waits for its seed's lock, which a network file system keeps for a while when a machine dies."""

Outcomes = Iterator[tuple[Job, str | None]]
"""Each job once, as they end, and why it failed, in one line, or None."""


def open_jobs(recipe: Recipe) -> list[Job]:
    """The jobs of a run, but for seeds that are finished."""
    config = recipe.config
    run = RunDirectory(Path(config.out).resolve())
    seeds = parse_range("seed", config.seed)
    unfinished = [seed for seed in seeds if not run.seed(seed).is_finished(config.steps)]
    return [Job(recipe_name(type(recipe)), run.path, seed, chosen_loggers(config), Path.cwd()) for seed in unfinished]


def train_job(job: Job) -> Ending:
    """Run a job on this machine, in a process of its own, its events appended to its file."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not STOP.requested:
        try:
            with job.directory.lock():
                break
        except CommandError:
            time.sleep(1)  # once patience has ended, the worker says that somebody else trains the seed
    job.directory.path.mkdir(parents=True, exist_ok=True)
    with open(job.directory.events, "a", buffering=1) as events:
        events.write("\n")  # whoever wrote here before may have died within a line
        return in_process(job, lambda event: print(json.dumps(event), file=events))


def needs(config: RunConfig, cpus: str, gpus: str) -> dict[str, Any]:
    """What each job asks of its cluster: its threads, a GPU if it trains on one, and the options in `job_options`.

    `cpus` and `gpus` are the library's words for a job's cores and GPUs. A file without options is refused.
    """
    request: dict[str, Any] = {cpus: config.threads} | ({} if config.device == "cpu" else {gpus: 1})
    name = config.job_options
    if name is None:
        return request
    try:
        return request | read_yaml(expanded(name), "write lines such as 'timeout_min: 600'")
    except ValueError as error:
        raise CommandError(f"job_options={name}: {error}") from None
