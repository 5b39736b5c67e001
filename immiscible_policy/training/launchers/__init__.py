"""Where jobs run: `launcher=joblib` on this machine, `submitit` through Slurm, `ray` on the machines of a Ray cluster.

A job is one seed of one run. Wherever it runs, it is the worker process that `launcher=local` starts too, so it yields
the same bits. All that passes between machines is the run directory, which they share: a job reads its options there,
resumes from its newest checkpoint there, and appends its events to a file there, which the launching process shows.

Each launcher is a module `on_NAME` with two functions: `require(config)` refuses what cannot be launched, before
anything is written, and `run(config, jobs)` yields each job as it ends, with why it failed or None. That module alone
imports the library.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from immiscible_policy.cli import CommandError
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.display import Display
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.workers import Job

LOOK_EVERY = 1.0
"""Seconds between two looks at the jobs' events."""


def require_launcher(config: RunConfig) -> None:
    """Refuse a launcher whose library is absent, whose options are wrong, or whose cluster does not answer."""
    if config.launcher != "local":
        _module(config.launcher).require(config)


def launch(config: RunConfig, jobs: Sequence[Job], metrics: Mapping[str, str]) -> dict[Job, str]:
    """Run jobs where `config.launcher` says, show their events, and `metrics` as `Recipe.shown`, until all have ended.

    Returns for each job that failed why, in one line.
    """
    failures: dict[Job, str] = {}
    if not jobs:
        return failures
    steps: dict[int | str, int] = {job.name: RunDirectory(job.run).config["steps"] for job in jobs}
    with Display(steps, metrics) as display, shown(jobs, display):
        for job, failure in _module(config.launcher).run(config, jobs):
            if failure:
                failures[job] = failure
                display.line(f"{job.run.name}: {failure}")
    print(f"{len(jobs) - len(failures)} of {len(jobs)} jobs finished", flush=True)
    return failures


@contextmanager
def shown(jobs: Sequence[Job], display: Display) -> Iterator[None]:
    """A context in which a thread shows the events that jobs add, from now on to the last."""
    seen = {job: _size(job) for job in jobs}
    over = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = over.wait(LOOK_EVERY)
            for job, begin in seen.items():
                if _size(job) <= begin:
                    continue
                with open(job.directory.events, "rb") as file:
                    file.seek(begin)
                    whole, newline, _ = file.read().rpartition(b"\n")
                seen[job] = begin + len(whole) + len(newline)
                for line in whole.splitlines():
                    with suppress(ValueError):  # empty, or torn by the death of the machine that wrote it
                        display.show(json.loads(line) | {"seed": job.name})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _size(job: Job) -> int:
    events = job.directory.events
    return events.stat().st_size if events.exists() else 0


def _module(launcher: str) -> Any:
    try:
        return import_module(f"{__name__}.on_{launcher}")
    except ModuleNotFoundError as error:
        if error.name != launcher:
            raise
        missing = f"{launcher} is not installed; pip install {launcher}, or launcher=local"
        raise CommandError(f"launcher={launcher}: {missing}") from None
