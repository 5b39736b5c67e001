"""Running Python in the peers' environment, for tests that need what is installed there alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def needs(package: str) -> None:
    """Skip the test where a package of the peers' environment is absent."""
    if not any((ROOT / ".venv-peers").glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"{package} is not in .venv-peers; `make peers` installs it")


def peers(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run Python there, from the repository's root; the test fails with what it said if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [PYTHON, *words], capture_output=True, text=True, cwd=ROOT, timeout=timeout,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
