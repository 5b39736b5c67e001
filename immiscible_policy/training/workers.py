"""Several seeds at once: one seed's crash neither hides nor stops the others.

On the CPU every seed has a process of its own, with threads of its own. On a GPU all share one process and its CUDA
context, each with a thread and a stream of its own: two captured steps then fill the GPU better than one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from immiscible_policy.capture import use_device
from immiscible_policy.cli import one_line
from immiscible_policy.cli import run as run_command
from immiscible_policy.training.options import Config
from immiscible_policy.training.seed import seed_directory
from immiscible_policy.training.training import P, Report, Training, find_training


class Ending(NamedTuple):
    """How a worker process ended.

    Attributes:
        failure: Why its seed failed, in one line, or None.
        killed: Whether a signal ended it.
    """

    failure: str | None
    killed: bool


def train_seeds(
    training: Training[Config, P], config: Config, parts: P, run: Path, seeds: list[int], report: Report
) -> dict[int, str]:
    """Train seeds, at most `config.parallel` at once: in processes on the CPU, in threads on a GPU.

    Args:
        training: The kind of training.
        config: The resolved options, already in the run directory's `config.yaml`.
        parts: What its `build` made of them.
        run: The run directory.
        seeds: Training seeds.
        report: Receives every seed's events; called from several threads.

    Returns:
        For each seed that failed, why, in one line; empty if all went well.
    """
    stopped = threading.Event()

    def watched(event: dict[str, Any]) -> None:
        if stopped.is_set():
            raise RuntimeError("stopped")
        report(event)

    def train_one(seed: int) -> str | None:
        if config.device == "cpu":
            return in_process(training.module, run, seed, config.wandb, report).failure
        return in_thread(training, config, parts, run, seed, watched)

    with ThreadPoolExecutor(config.parallel) as pool:
        try:
            return {seed: why for seed, why in zip(seeds, pool.map(train_one, seeds), strict=True) if why}
        except KeyboardInterrupt:
            stopped.set()  # a thread cannot be killed; it ends with its next report
            raise


def in_thread(
    training: Training[Config, P], config: Config, parts: P, run: Path, seed: int, report: Report
) -> str | None:
    """Train a seed in this thread and, on a GPU, a stream of its own; returns why it failed, or None."""
    try:
        use_device(config.device)
        with own_stream(config.device):
            training.train_seed(config, parts, run, seed, report)
        return None
    except Exception as error:  # whatever it is, the other seeds go on
        log_path = _log_path(run, seed)
        with open(log_path, "a") as log:
            traceback.print_exc(file=log)
        return f"seed {seed} failed: {one_line(error)} (see {log_path})"


def own_stream(device: str) -> AbstractContextManager[object]:
    """A context in which a thread works on a new stream of a GPU; on the CPU, nothing."""
    return nullcontext() if device == "cpu" else torch.cuda.stream(torch.cuda.Stream(device))


def _log_path(run: Path, seed: int) -> Path:
    path = seed_directory(run, seed) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def in_process(module: str, run: Path, seed: int, wandb: str, report: Report, cwd: Path | None = None) -> Ending:
    """Train a seed in a worker process, pass its events on; what it says besides goes to the seed's log.

    Args:
        module: The module that holds the kind of training.
        run: The run directory.
        seed: Training seed.
        wandb: What becomes of the metrics, as the option.
        report: Receives the seed's events.
        cwd: The worker's working directory; None: this process's.
    """
    log_path = _log_path(run, seed)
    command = [sys.executable, "-m", "immiscible_policy.training.workers", module, str(run), str(seed), wandb]
    with open(log_path, "ab") as log:
        begin = log.tell()
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=cwd)
        assert worker.stdout is not None
        for line in worker.stdout:
            report(json.loads(line))
        code = worker.wait()
    if code == 0:
        return Ending(None, False)
    said = log_path.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Ending(f"seed {seed} failed ({how}): {last.removeprefix('error: ')} (see {log_path})", code < 0)


def _work(words: list[str]) -> None:
    """A worker's life: read the run's options, train one seed, write events as JSON lines."""
    _die_with_parent()
    if "SUBMITIT_EXECUTOR" in os.environ:  # Slurm tells every process that time is up; submitit, our parent, acts on it
        for told in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(told, signal.SIG_IGN)
    # Events go to the pipe alone; whatever libraries print goes to the log.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    training, run, seed, wandb = find_training(words[0]), Path(words[1]), int(words[2]), words[3]
    config = training.schema.read(run / "config.yaml")
    config.wandb = wandb
    parts = training.build(config)
    training.train_seed(config, parts, run, seed, lambda event: print(json.dumps(event), file=events))


def _die_with_parent() -> None:
    """End this process soon after the parent's end, so that an orphan never trains on beside its successor."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    run_command(_work)  # type: ignore[arg-type]
