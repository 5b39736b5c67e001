"""Jobs in Slurm's queue, by submitit; with `cluster=local` a process for each on this machine, all at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import submitit

from immiscible_policy.cli import CommandError, one_line, unknown
from immiscible_policy.training.launchers.job import Outcomes, needs, train_job
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.workers import Job

CLUSTERS = ("slurm", "local")
TIMEOUT = 24 * 60
"""Minutes that a job asks for unless it says otherwise; submitit's own 5 are too few for a training."""


class Requeued:
    """A job as submitit wants it: preempted or out of time, it enters the queue again, and resumes."""

    def __call__(self, job: Job) -> str | None:
        """Run it; returns why it failed, or None."""
        return train_job(job).failure

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """What to submit instead; its checkpoints are on disk already."""
        return submitit.helpers.DelayedSubmission(self, job)


def require(config: RunConfig) -> None:
    """Refuse a cluster that is not there, and options that submitit does not know, by a CommandError."""
    if config.cluster not in (None, *CLUSTERS):
        raise CommandError(unknown("cluster of launcher=submitit", str(config.cluster), CLUSTERS))
    with TemporaryDirectory() as folder:
        _executor(config, Path(folder))


def run(config: RunConfig, jobs: Sequence[Job]) -> Outcomes:
    """Submit all as one array, and wait for each."""
    folder = Path(os.path.commonpath([job.run for job in jobs])) / "submitit"
    executor = _executor(config, folder)
    with executor.batch():
        submitted = [executor.submit(Requeued(), job) for job in jobs]
    job_of = dict(zip(submitted, jobs, strict=True))
    for submission in submitit.helpers.as_completed(submitted, poll_frequency=1):
        job = job_of[submission]
        lost = f"seed {job.seed} failed: job {submission.job_id} was lost (see {folder})"
        yield job, lost if submission.exception() else submission.result()


def _executor(config: RunConfig, folder: Path) -> submitit.AutoExecutor:
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=config.cluster or "slurm")
        executor.update_parameters(**{"timeout_min": TIMEOUT} | needs(config, "cpus_per_task", "gpus_per_node"))
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:  # submitit's ways to refuse
        raise CommandError(f"launcher=submitit: {one_line(error)}") from None
    return executor
