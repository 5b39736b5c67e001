"""Several seeds, each in a process of its own: one seed's crash neither hides nor stops the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from immiscible_policy.cli import run as run_command
from immiscible_policy.training.config import TrainConfig, read_config
from immiscible_policy.training.run import build_parts, seed_directory, train_seed

Report = Callable[[dict[str, Any]], None]


def train_seeds(config: TrainConfig, run: Path, seeds: list[int], report: Report) -> dict[int, str]:
    """Train seeds in worker processes, at most `config.parallel` at once.

    Args:
        config: The resolved options, already in the run directory's `config.yaml`.
        run: The run directory.
        seeds: Training seeds.
        report: Receives every worker's events; called from several threads.

    Returns:
        For each seed that failed, why, in one line; empty if all went well.
    """
    with ThreadPoolExecutor(config.parallel) as pool:
        outcomes = pool.map(lambda seed: _supervise(run, seed, config.wandb, report), seeds)
        return {seed: why for seed, why in zip(seeds, outcomes, strict=True) if why}


def _supervise(run: Path, seed: int, wandb: str, report: Report) -> str | None:
    """Run a worker, pass its events on; what it says besides goes to the seed's log."""
    log_path = seed_directory(run, seed) / "log.txt"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "immiscible_policy.training.workers", str(run), str(seed), wandb]
    with open(log_path, "ab") as log:
        begin = log.tell()
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert worker.stdout is not None
        for line in worker.stdout:
            report(json.loads(line))
        code = worker.wait()
    if code == 0:
        return None
    said = log_path.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"seed {seed} failed ({how}): {last.removeprefix('error: ')} (see {log_path})"


def _work(words: list[str]) -> None:
    """A worker's life: read the run's options, train one seed, write events as JSON lines."""
    _die_with_parent()
    # Events go to the pipe alone; whatever libraries print goes to the log.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run, seed, wandb = Path(words[0]), int(words[1]), words[2]
    config = read_config(run / "config.yaml")
    config.wandb = wandb
    train_seed(config, build_parts(config), run, seed, lambda event: print(json.dumps(event), file=events))


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
