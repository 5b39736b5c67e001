"""Running Python in the peers' environments, for tests that need what is installed there alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEROBOTS = (".venv-lerobot", ".venv-peers")
"""The environments with LeRobot, the newest first."""


def installed(package: str, venv: str) -> bool:
    """Whether an environment has a package."""
    return any((ROOT / venv).glob(f"lib/python*/site-packages/{package}"))


def needs(package: str, venv: str = ".venv-peers") -> None:
    """Skip the test where an environment lacks a package."""
    if not installed(package, venv):
        pytest.skip(f"{package} is not in {venv}; `make {venv.removeprefix('.venv-')}` installs it")


def each_lerobot() -> list:
    """Parameters for tests in every environment with LeRobot; in all but the newest that is there they are slow."""
    default = next((venv for venv in LEROBOTS if installed("lerobot", venv)), LEROBOTS[0])
    return [pytest.param(venv, marks=() if venv == default else pytest.mark.slow) for venv in LEROBOTS]


def peers(
    *words: str, venv: str = ".venv-peers", path: Path = ROOT, cwd: Path = ROOT, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run Python there, from the repository's root or another folder; the test fails with what it said if it fails.

    Modules of the project are imported from the root, others from `path` first.
    """
    places = os.pathsep.join(map(str, (path, ROOT, ROOT / "envs")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": places}
    done = subprocess.run(
        [ROOT / venv / "bin" / "python", *words], capture_output=True, text=True, cwd=cwd, timeout=timeout,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
