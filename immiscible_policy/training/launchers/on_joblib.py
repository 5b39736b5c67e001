"""Jobs on this machine, `parallel` at once, by joblib."""

from __future__ import annotations

from collections.abc import Sequence

import joblib

from immiscible_policy.training.launchers.job import Outcomes, train_job
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.workers import Job


def require(config: RunConfig) -> None:
    """Nothing beside joblib itself is needed."""


def run(config: RunConfig, jobs: Sequence[Job]) -> Outcomes:
    """Threads suffice, since each waits for a process; `joblib.parallel_config` may name another backend."""

    def outcome(job: Job) -> tuple[Job, str | None]:
        return job, train_job(job).failure

    parallel = joblib.Parallel(n_jobs=config.parallel, prefer="threads", return_as="generator_unordered")
    yield from parallel(joblib.delayed(outcome)(job) for job in jobs)
