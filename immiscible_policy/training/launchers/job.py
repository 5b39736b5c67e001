"""A job: what a machine has to know of it, and running it there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.store.checkpoint import alone
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.seed import is_finished, seed_directory
from immiscible_policy.training.training import Training
from immiscible_policy.training.workers import Ending, in_process

PATIENCE = 300.0
"""Seconds that a job waits for its seed's lock, which a network file system keeps for a while when a machine dies."""


class Job(NamedTuple):
    """One seed of a run.

    Attributes:
        module: The module that holds the kind of training, see `find_training`.
        run: The run directory, absolute.
        seed: Training seed.
        wandb: What becomes of the metrics, as the option.
        cwd: Where the command was given: relative paths in the options begin there.
    """

    module: str
    run: Path
    seed: int
    wandb: str
    cwd: Path

    @property
    def name(self) -> str:
        """Run and seed, for people."""
        return f"{self.run.name}/{self.seed}"

    @property
    def events(self) -> Path:
        """The file that its events are appended to."""
        return seed_directory(self.run, self.seed) / "events.jsonl"


Outcomes = Iterator[tuple[Job, str | None]]
"""Each job once, as they end, and why it failed, in one line, or None."""


def open_jobs(training: Training[Any, Any], config: RunConfig, seeds: Sequence[int]) -> list[Job]:
    """The jobs of a run, but for seeds that are finished."""
    run = Path(str(config.out)).resolve()
    jobs = (Job(training.module, run, seed, config.wandb, Path.cwd()) for seed in seeds)
    return [job for job in jobs if not is_finished(config, run, job.seed)]


def train_job(job: Job) -> Ending:
    """Run a job on this machine, in a process of its own, its events appended to its file."""
    job.events.parent.mkdir(parents=True, exist_ok=True)
    _await_lock(job.events.parent)
    with open(job.events, "a", buffering=1) as events:
        events.write("\n")  # whoever wrote here before may have died within a line

        def report(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")

        return in_process(job.module, job.run, job.seed, job.wandb, report, job.cwd)


def _await_lock(directory: Path) -> None:
    """Wait until nobody trains a seed, or for so long that its worker may say that somebody does."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            with alone(directory):
                return
        except CommandError:
            time.sleep(1)


def needs(config: RunConfig, cpus: str, gpus: str) -> dict[str, Any]:
    """What each job asks of its cluster, in the library's words: its threads, a GPU if it trains on one, and more.

    Args:
        config: Options of the run.
        cpus: The library's word for a job's cores.
        gpus: Its word for a job's GPUs.

    Raises:
        CommandError: If the file `job_options` is missing, or holds something else than names and values.
    """
    own: dict[str, Any] = {cpus: config.threads}
    if config.device != "cpu":
        own[gpus] = 1
    return own | _job_options(config.job_options)


def _job_options(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    try:
        found = yaml.safe_load(Path(name).expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"job_options={name} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise CommandError(f"job_options={name} holds no options; write lines such as 'timeout_min: 600'")
    return found
