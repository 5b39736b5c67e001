"""Where jobs run: `launcher=joblib` on this machine, `submitit` through Slurm, `ray` on the machines of a Ray cluster.

A job is one seed of one run, whose resolved options lie in the run directory's `config.yaml`. Wherever it runs, it is
the worker process that `launcher=local` starts too, so it yields the same bits. All that passes between machines is the
run directory, which they share: a job reads its options there, resumes from its newest checkpoint there, and appends
its events to a file there, which whoever launched the jobs shows while they run.

Each launcher is a module `on_NAME` with two functions: `require(config)` refuses what cannot be launched, before
anything is written, and `run(config, jobs)` yields each job as it ends, with why it failed or None. That module alone
imports the library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from immiscible_policy.cli import CommandError
from immiscible_policy.training.display import Display
from immiscible_policy.training.launchers.view import shown
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.workers import Job


def require_launcher(config: RunConfig) -> None:
    """Refuse a launcher whose library is absent, whose options are wrong, or whose cluster does not answer.

    Raises:
        CommandError: In one line that says what to do.
    """
    if config.launcher != "local":
        _module(config.launcher).require(config)


def launch(config: RunConfig, jobs: Sequence[Job], metrics: Mapping[str, str]) -> dict[Job, str]:
    """Run jobs where `config.launcher` says, and show their events until the last has ended.

    Args:
        config: Options of any of the jobs' runs.
        jobs: What to run; each writes to its run directory.
        metrics: What is shown of evaluations, as `Recipe.shown`.

    Returns:
        For each job that failed, why, in one line; empty if all went well.
    """
    failures: dict[Job, str] = {}
    if not jobs:
        return failures
    with Display([job.name for job in jobs], config.steps, metrics) as display, shown(jobs, display):
        for job, failure in _module(config.launcher).run(config, jobs):
            if failure:
                failures[job] = failure
                display.line(f"{job.run.name}: {failure}")
    print(f"{len(jobs) - len(failures)} of {len(jobs)} jobs finished", flush=True)
    return failures


def _module(launcher: str) -> Any:
    """The module of a launcher.

    Raises:
        CommandError: If its library is absent.
    """
    try:
        return import_module(f"{__name__}.on_{launcher}")
    except ModuleNotFoundError as error:
        if error.name != launcher:
            raise
        raise CommandError(
            f"launcher={launcher}: {launcher} is not installed; pip install {launcher}, or launcher=local"
        ) from None
