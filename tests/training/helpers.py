"""Small stores and the real command line, for the tests of training."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from immiscible_envs.geometry import keypoints
from immiscible_envs.rendering import render_state
from immiscible_envs.simulation import Simulation
from immiscible_policy.demos.store import write_store
from immiscible_policy.store.run import SeedDirectory
from immiscible_policy.training.recipe import Listener, Recipe
from immiscible_policy.training.workers import in_thread

ROOT = Path(__file__).resolve().parent.parent.parent


def write_small_store(path: Path, episodes: int = 4, steps: int = 24, seed: int = 0, images: bool = False) -> Path:
    """A store of real physics: the agent wanders at random; with images of 96 x 96 if they are asked for."""
    random = np.random.default_rng(seed)
    states, actions, contacts = [], [], []
    for _ in range(episodes):
        simulation = Simulation()
        simulation.reset([*random.uniform(60, 450, 2), *random.uniform(150, 350, 2), random.uniform(0, 6)])
        for _ in range(steps):
            action = np.clip(simulation.state[:2] + random.normal(0, 25, 2), 30, 480)
            states.append(simulation.state)
            actions.append(action)
            simulation.step(action)
            contacts.append(simulation.n_contacts)
    state = np.array(states)
    arrays = {
        "state": state,
        "action": np.array(actions),
        "keypoint": keypoints(state[:, 2:]),
        "n_contacts": np.array(contacts, dtype=np.float32),
    }
    if images:
        arrays["img"] = np.stack([render_state(item) for item in state]).astype(np.float32)
    return write_store(path, arrays, np.arange(1, episodes + 1) * steps)


def here(script: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts, or with `-m` one of its modules, in this process: it starts at once.

    It sees a GPU only if a word asks for one.
    """
    name, *rest = words if script == "-m" else (str(ROOT / script), *words)
    typed = [sys.executable, *(["-m"] if script == "-m" else []), name, *rest]
    out, err = io.StringIO(), io.StringIO()
    hidden = not any(word.startswith("device=cuda") for word in words)
    with as_typed(typed), without_gpu(hidden), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        code = exit_code(runpy.run_module if script == "-m" else runpy.run_path, name)
    return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())


@contextmanager
def seeds_in_turn() -> Iterator[None]:
    """Train the seeds of a run one after another in this process, with the same result: nothing has to start."""

    def train_seeds(recipe: Recipe, seeds: list[SeedDirectory], listen: Listener) -> dict[int, str]:
        return {seed.number: why for seed in seeds if (why := in_thread(recipe, seed, listen))}

    with patch("immiscible_policy.training.driver.train_seeds", train_seeds):
        yield


@contextmanager
def as_typed(words: list[str]) -> Iterator[None]:
    """Let the program find these words as those that it was started with."""
    given = words[2:] if words[1] == "-m" else words[1:]
    with patch.object(sys, "argv", given), patch.object(sys, "orig_argv", words):
        yield


def exit_code(run: Callable[..., object], name: str) -> int:
    """What a program leaves with; a traceback of its own goes through."""
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of modules that are loaded already
            run(name, run_name="__main__")
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@contextmanager
def without_gpu(hidden: bool = True) -> Iterator[None]:
    """Hide GPUs from torch, if so, and give it back its threads at the end."""
    threads = torch.get_num_threads()
    try:
        with patch("torch.cuda.is_available", return_value=False) if hidden else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def command(script: str, *words: str, timeout: float = 120, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, as a user does: where that process itself matters."""
    program = script if script == "-m" else str(ROOT / script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, program, *words],
        capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment,
    )  # fmt: skip


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says; asserts exit code 2 and that it is one line."""
    assert result.returncode == 2, result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
