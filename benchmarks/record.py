"""What every measured JSON says about itself: hardware, versions, commit and command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from immiscible_policy.evaluation.rows import write_atomically

PACKAGES = ("torch", "diffusers", "gymnasium", "pymunk", "numpy", "scipy", "zarr")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write_result(path: Path, content: dict[str, Any], command: str | list[str]) -> None:
    """Write measured figures together with what they were measured on.

    Args:
        path: JSON file.
        content: The figures.
        command: The command, or commands, that measured them.
    """
    whole = {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        **content,
    }
    write_atomically(path, (json.dumps(whole, indent=2) + "\n").encode())


def command_line() -> str:
    """The words this process was started with, as a user would type them."""
    return f"python -m benchmarks {' '.join(sys.argv[1:])}"


def commit() -> str | None:
    """The checkout's commit, marked `-dirty` if files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Processor, cores and accelerator."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter to speed or results."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
