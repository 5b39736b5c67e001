"""Small stores and the real command line, for the tests of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from envs.geometry import keypoints
from envs.rendering import render_state
from envs.simulation import Simulation
from immiscible_policy.demos.store import write_store

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
        arrays["img"] = np.stack([render_state(each) for each in state]).astype(np.float32)
    return write_store(path, arrays, np.arange(1, episodes + 1) * steps)


def command(script: str, *words: str, timeout: float = 120, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts, or with `-m` one of its modules, as a user does."""
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
