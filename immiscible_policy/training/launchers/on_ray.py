"""Jobs on the machines of a Ray cluster; those that a lost worker or machine was running are run again elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import ray
from ray._private import ray_constants

from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.training.launchers.job import Outcomes, needs, train_job
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.workers import Job

RETRIES = 10
"""How often a job is run again whose worker or machine was lost."""
ANSWER_WITHIN = 30.0
"""Seconds that a cluster has for its answer; Ray itself would try for minutes, and then end the process."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


class WorkerKilled(RuntimeError):
    """A signal ended a worker process, for want of memory perhaps: nothing is wrong with the job itself."""


def require(config: RunConfig) -> None:
    """Refuse options that Ray does not know, and a cluster that does not answer, by a CommandError."""
    _task(config)
    if config.cluster:
        _require_answer(config.cluster)


def _require_answer(cluster: str) -> None:
    """Refuse a cluster that does not answer; another process asks, because Ray may hang, or end the process."""
    program = f"import ray, sys; ray.init(sys.argv[1], **{QUIET})"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", program, cluster], capture_output=True, text=True, timeout=ANSWER_WITHIN
        )
    except subprocess.TimeoutExpired:
        silent = f"no Ray cluster answers there within {ANSWER_WITHIN:.0f} s; start one with ray start"
        raise CommandError(f"cluster={cluster}: {silent}") from None
    if answer.returncode:
        raise CommandError(f"cluster={cluster}: {_last_line(answer.stderr)}")


def run(config: RunConfig, jobs: Sequence[Job]) -> Outcomes:
    """Give Ray a task for each job; without `cluster` on a Ray of this machine alone."""
    task = _task(config)
    if config.cluster:
        ray.init(address=config.cluster, **QUIET)
    else:
        start_alone()
    try:
        request = needs(config, "num_cpus", "num_gpus")
        needed = {"CPU": request["num_cpus"] or 0, "GPU": request.get("num_gpus") or 0}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(machine.get(what, 0) >= amount for what, amount in needed.items()) for machine in machines):
            print(f"no machine of the Ray cluster has what each job needs, {needed}; they wait for one", flush=True)
        running = {task.remote(job): job for job in jobs}
        while running:
            (ended,), _ = ray.wait(list(running))
            job = running.pop(ended)
            try:
                yield job, ray.get(ended)
            except ray.exceptions.RayError as error:
                yield job, f"seed {job.seed} failed: {_last_line(str(error))} (see {job.directory.path})"
    finally:
        ray.shutdown()


def start_alone() -> None:
    """Start a Ray of this machine alone, which listens on loopback, where no other machine can reach it.

    Ray does so by itself on Windows and macOS; elsewhere it exchanges a loopback address for one of the network's.
    """
    with patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        ray.init(address="local", _node_ip_address="127.0.0.1", include_dashboard=False, **QUIET)


def _task(config: RunConfig) -> Any:
    """What Ray runs, with what it asks for; Ray counts lost machines and killed workers alike as retries."""
    retried: dict[str, Any] = {"max_retries": RETRIES, "retry_exceptions": [WorkerKilled]}
    try:
        return ray.remote(**retried | needs(config, "num_cpus", "num_gpus"))(_train)
    except (TypeError, ValueError) as error:
        raise CommandError(f"launcher=ray: {one_line(error)}") from None


def _train(job: Job) -> str | None:
    """Run a job; returns why it failed, or None, and raises WorkerKilled where Ray should run it again."""
    ending = train_job(job)
    if ending.killed:
        raise WorkerKilled(ending.failure)
    return ending.failure


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
