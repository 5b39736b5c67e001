"""Several seeds at once: one seed's crash neither hides nor stops the others.

On the CPU every seed has a process of its own, with threads of its own. On a GPU all share one process and its CUDA
context, each with a thread and a stream of its own: two captured steps then fill the GPU better than one.

Worker processes are forked from a server that has imported what they need, so that they start at once. One that trains
beside this process receives the prepared recipe, so that data are opened once. One that a launcher starts elsewhere
prepares the recipe that the run's `config.yaml` asks for.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any, NamedTuple

import torch

from immiscible_policy.capture import use_device
from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.cli import run as run_command
from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.training.loggers import chosen_loggers
from immiscible_policy.training.recipe import Listener, Recipe, recipe_name
from immiscible_policy.training.seed import train_seed
from immiscible_policy.training.stopping import SIGNALS, STOP

atexit.register(STOP.kill)  # else this process would wait for its workers before it exits
FORKSERVER = multiprocessing.get_context("forkserver")
SERVER = "immiscible_policy.training.server"
"""Imported by the server, and by it alone."""
BOOKKEEPING = threading.Lock()
"""Held while a process starts or is joined: `multiprocessing` reads an exit code once, from whichever thread."""


class Job(NamedTuple):
    """One seed of a run: all that a machine has to know.

    Attributes:
        recipe: The kind of recipe, `module:Class`.
        loggers: The options that say where metrics go beside the run directory, and their values.
        cwd: Where the command was given: relative paths in the options begin there.
    """

    recipe: str
    run: Path
    seed: int
    loggers: tuple[tuple[str, Any], ...]
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
        job = Job(recipe_name(type(recipe)), seed.run.path, seed.number, chosen_loggers(config), Path.cwd())
        return in_process(job, listen, recipe).failure

    with ThreadPoolExecutor(config.parallel) as pool:
        return {seed.number: why for seed, why in zip(seeds, pool.map(train_one, seeds), strict=True) if why}


def require_guard() -> None:
    """Refuse a script that would train once more in every worker: workers import the script that they were started by.

    Raises:
        CommandError: If the script never looks at its `__name__`.
    """
    script = Path(getattr(sys.modules["__main__"], "__file__", ""))
    if script.is_file() and "__name__" not in script.read_text(errors="replace"):
        cure = 'put what it does below `if __name__ == "__main__":`, or train one seed'
        raise CommandError(f"{script} is imported by the process of every seed and would train there again: {cure}")


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
    """Train a seed in a worker process, pass its events on; what it prints goes to the seed's log.

    Without a recipe the worker prepares its own from the run's options.
    """
    stopped = Ending(f"seed {job.seed} was stopped by a signal", False)
    if STOP.requested:
        return stopped
    with _log(job.directory, "ab") as log:
        begin = log.tell()
    FORKSERVER.set_forkserver_preload([SERVER, "__main__", job.recipe.partition(":")[0]])
    reader, writer = FORKSERVER.Pipe(duplex=False)
    worker = FORKSERVER.Process(target=_work, args=(job, recipe, dict(os.environ), writer))
    with BOOKKEEPING:
        worker.start()
    writer.close()
    STOP.workers.add(worker)
    if STOP.requested:  # it came since
        worker.terminate()
    for event in _received(reader):
        listen(event)
    with BOOKKEEPING:
        worker.join()
    STOP.workers.discard(worker)
    code = worker.exitcode or 0
    if code == 0 or STOP.requested:
        return stopped if code else Ending(None, False)
    output = job.directory.log.read_bytes()[begin:].decode(errors="replace").strip()
    last = output.splitlines()[-1] if output else "it printed nothing"
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Ending(f"seed {job.seed} failed ({how}): {last.removeprefix('error: ')} (see {job.directory.log})", code < 0)


def _received(reader: Connection) -> Iterator[Any]:
    """Everything that comes through a pipe, until the process at its other end is gone."""
    with reader, suppress(EOFError, OSError):
        while True:
            yield reader.recv()


def _log(seed: SeedDirectory, mode: str) -> IO[Any]:
    seed.path.mkdir(parents=True, exist_ok=True)
    return open(seed.log, mode)


def _work(job: Job, recipe: Recipe | None, environment: dict[str, str], events: Connection) -> None:
    """A worker's life: take or prepare the recipe, train one seed, send its events."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(job.cwd)
    with _log(job.directory, "ab") as log:  # all that is printed from here on
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if "SUBMITIT_EXECUTOR" in environment:  # Slurm tells every process that time is up; submitit, our parent, acts
        for ending in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
    else:
        for ending in SIGNALS:
            signal.signal(ending, STOP.note)
    run_command(partial(_train, job, recipe, events.send))


def _train(job: Job, recipe: Recipe | None, listen: Listener, _: list[str]) -> None:
    run = RunDirectory(job.run)
    if recipe is None:
        kind = resolve_name(job.recipe)
        config = kind.schema.read(run)
        config = replace(config, **dict(job.loggers))
        recipe = kind.prepare(config)
    train_seed(recipe, run.seed(job.seed), listen)


def _end_with_parent() -> None:
    """End this process when the one that it trains for has ended: an orphan would train on beside its successor."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
