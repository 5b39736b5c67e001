"""Several seeds at once: one seed's crash neither hides nor stops the others.

On the CPU every seed has a process of its own, with threads of its own. On a GPU all share one process and its CUDA
context, each with a thread and a stream of its own: two captured steps then fill the GPU better than one.

A worker process that this process starts receives the prepared recipe through a pipe, so that data are opened once. One
that a launcher starts elsewhere prepares the recipe that the run's `config.yaml` asks for.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from immiscible_policy.capture import use_device
from immiscible_policy.cli import one_line
from immiscible_policy.cli import run as run_command
from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.training.recipe import Listener, Recipe, find_recipe, recipe_name
from immiscible_policy.training.seed import train_seed
from immiscible_policy.training.stopping import SIGNALS, STOP

PIPED = "-"
"""Says to a worker that its recipe comes through its standard input."""


class Job(NamedTuple):
    """One seed of a run: all that a machine has to know.

    Attributes:
        recipe: The kind of recipe, `module:Class`.
        wandb: What becomes of the metrics, as the option.
        cwd: Where the command was given: relative paths in the options begin there.
    """

    recipe: str
    run: Path
    seed: int
    wandb: str
    cwd: Path

    @property
    def name(self) -> str:
        """Run and seed, for people."""
        return f"{self.run.name}/{self.seed}"

    @property
    def directory(self) -> SeedDirectory:
        """Where the seed keeps its results."""
        return RunDirectory(self.run).seed(self.seed)


class Ending(NamedTuple):
    """How a worker process ended: why its seed failed, in one line or None, and whether a signal killed it."""

    failure: str | None
    killed: bool


def train_seeds(recipe: Recipe, seeds: list[SeedDirectory], listen: Listener) -> dict[int, str]:
    """Train seeds, at most `config.parallel` at once: in processes on the CPU, in threads on a GPU.

    `listen` is called from several threads. Returns for each seed that failed why, in one line.
    """
    config = recipe.config

    def train_one(seed: SeedDirectory) -> str | None:
        if config.device != "cpu":
            return in_thread(recipe, seed, listen)
        job = Job(recipe_name(type(recipe)), seed.run.path, seed.number, config.wandb, Path.cwd())
        return in_process(job, listen, recipe).failure

    with ThreadPoolExecutor(config.parallel) as pool:
        return {seed.number: why for seed, why in zip(seeds, pool.map(train_one, seeds), strict=True) if why}


def in_thread(recipe: Recipe, seed: SeedDirectory, listen: Listener) -> str | None:
    """Train a seed in this thread and, on a GPU, a stream of its own; returns why it failed, or None."""
    STOP.require_none()
    try:
        use_device(recipe.config.device)
        with own_stream(recipe.config.device):
            train_seed(recipe, seed, listen)
        return None
    except Exception as error:  # whatever it is, the other seeds go on
        with _log(seed, "a") as log:
            traceback.print_exc(file=log)
        return f"seed {seed.number} failed: {one_line(error)} (see {seed.log})"


def own_stream(device: str) -> AbstractContextManager[object]:
    """A context in which a thread works on a new stream of a GPU; on the CPU, nothing."""
    return nullcontext() if device == "cpu" else torch.cuda.stream(torch.cuda.Stream(device))


def in_process(job: Job, listen: Listener, recipe: Recipe | None = None) -> Ending:
    """Train a seed in a worker process, pass its events on; what it says besides goes to the seed's log.

    Without a recipe the worker prepares its own from the run's options.
    """
    words = [job.recipe, str(job.run), str(job.seed), job.wandb, *([] if recipe is None else [PIPED])]
    stopped = Ending(f"seed {job.seed} was stopped by a signal", False)
    if STOP.requested:
        return stopped
    with _log(job.directory, "ab") as log:
        begin = log.tell()
        worker = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *words],
            stdin=subprocess.DEVNULL if recipe is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=job.cwd,
        )
        STOP.workers.add(worker)
        if STOP.requested:  # it came since
            worker.terminate()
        assert worker.stdout is not None
        if worker.stdin is not None:
            with suppress(BrokenPipeError), worker.stdin as pipe:  # a worker that died says why in its log
                pickle.dump(recipe, pipe, pickle.HIGHEST_PROTOCOL)
        for line in worker.stdout:
            listen(json.loads(line))
        code = worker.wait()
        STOP.workers.discard(worker)
    if code == 0 or STOP.requested:
        return stopped if code else Ending(None, False)
    output = job.directory.log.read_bytes()[begin:].decode(errors="replace").strip()
    last = output.splitlines()[-1] if output else "it printed nothing"
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Ending(f"seed {job.seed} failed ({how}): {last.removeprefix('error: ')} (see {job.directory.log})", code < 0)


def _log(seed: SeedDirectory, mode: str) -> IO[Any]:
    seed.path.mkdir(parents=True, exist_ok=True)
    return open(seed.log, mode)


def _work(words: list[str]) -> None:
    """A worker's life: take or prepare the recipe, train one seed, write events as JSON lines."""
    parent = os.getppid()

    def end_with_parent() -> None:  # an orphan would train on beside its successor
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if "SUBMITIT_EXECUTOR" in os.environ:  # Slurm tells every process that time is up; submitit, our parent, acts on it
        for ending in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
    else:
        for ending in SIGNALS:
            signal.signal(ending, STOP.note)
    # Events go to the pipe alone; whatever libraries print goes to the log.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, path, seed, wandb, *source = words
    run = RunDirectory(path)
    if source == [PIPED]:
        recipe: Recipe = pickle.load(sys.stdin.buffer)
    else:
        kind = find_recipe(name)
        config = kind.schema.read(run)
        config.wandb = wandb
        recipe = kind.prepare(config)
    train_seed(recipe, run.seed(int(seed)), lambda event: print(json.dumps(event), file=events))


if __name__ == "__main__":
    run_command(_work)  # type: ignore[arg-type]
