"""What measured results say about their origin: code, versions, hardware, command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("immiscible-policy", "torch", "diffusers", "gymnasium", "pymunk", "numpy", "scipy", "zarr")
CHECKOUT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """The origin of whatever this process measures, as JSON values."""
    return {"command": command(), "commit": commit(), "hardware": hardware(), "versions": versions()}


def command() -> str:
    """The words that this process was started with."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def command_to_resume(run: Path, processes: int = 1) -> str:
    """The command that continues a run, by the program that this process runs, alone or as one of several."""
    program = [word for word in sys.orig_argv[1:] if "=" not in word and word != "-u"]
    begin = ["python"] if processes == 1 else ["torchrun", "..."]
    return shlex.join([*begin, *program, f"resume={run}"])


def without_places(words: str) -> str:
    """A command with the names of files, but not the directories where they happened to lie.

    The values of `task=`, and addresses, stay as they are: there a `/` is part of the name.
    """
    try:
        parts = shlex.split(words)
    except ValueError:  # written by hand, with a quotation mark alone
        parts = words.split()
    return shlex.join(map(_without_places, parts))


def commit() -> str | None:
    """The checkout's commit, marked `-dirty` if files differ from it; None outside a checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, accelerator, and whether trainings with `precision=auto` compute in bfloat16 on it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name[^:\n]*:(.*)$", text, flags=re.M)
    processor = model[1].strip() if model else platform.processor()
    bf16 = native_bf16("cuda" if gpu else "cpu")
    return {"processor": processor, "cores": os.cpu_count(), "gpu": gpu, "bf16": bf16}


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide results and speed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _without_places(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return Path(word).name if Path(word).is_absolute() else word
    if key in ("task", "task.name"):
        return word
    place = re.compile(r"^([^/=]+=)?.*/(?=[^/])", re.S)  # of PATH or NAME=PATH; a path may hold `=`, a name no `/`
    parts = (part if "://" in part else place.sub(r"\1", part) for part in value.split(","))
    return f"{key}={','.join(parts)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
