"""What steps a batch of PushT simulations: Python (plain), or kernels that call pymunk's C library (compiled).

Both give the same bits, and the plain backend says what they are. Before the compiled one is used on a machine
it must prove that there: it replays pushes beside the plain one, and a passed check is remembered in the user's
cache directory until a version, the processor or the code changes. Where it cannot be used, `"auto"` means the
plain backend, and one warning says why.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from immiscible_envs.checks import one_of
from immiscible_envs.geometry import GOAL_POSE, Array, Integers, coverage
from immiscible_envs.simulation import Simulation

CHECKED_PACKAGES = ("pymunk", "numba", "llvmlite", "numpy")
CHECKED_SOURCES = ("compiled.py", "geometry.py", "simulation.py")
CHECK_ROWS, CHECK_STEPS = 12, 60
MACHINES = ("x86_64", "amd64", "aarch64", "arm64")


class PlainBackend:
    """Steps simulations, each in a row of its own, by a loop over `Simulation.step`: the reference."""

    name = "plain"

    def __init__(self) -> None:
        """Begin with no simulation; each row needs an `attach` before it is stepped."""
        self._simulations: dict[int, Simulation] = {}

    def attach(self, row: int, simulation: Simulation) -> None:
        """Take over a simulation that was just built or reset; only the backend steps it from now on."""
        self._simulations[row] = simulation

    def advance(self, rows: Integers, actions: Array) -> tuple[Array, Integers]:
        """Step R rows T times towards actions (R, T, 2) px: states (R, T, 5) and n_contacts (R, T) after each."""
        states, n_contacts = np.empty((*actions.shape[:2], 5)), np.empty(actions.shape[:2], dtype=np.int64)
        for index, row in enumerate(rows.tolist()):
            simulation = self._simulations[row]
            for now, action in enumerate(actions[index]):
                simulation.step(action)
                states[index, now], n_contacts[index, now] = simulation.state, simulation.n_contacts
        return states, n_contacts

    def coverage(self, poses: Array, goals: Array) -> Array:
        """Coverage (M,) of block poses (M, 3) over goal poses (M, 3), px and rad."""
        return np.array([coverage(pose, goal) for pose, goal in zip(poses, goals, strict=True)])


def make_backend(backend: str, num_envs: int, threads: int = 1) -> PlainBackend:
    """Build a backend: "plain", "compiled", or "auto": compiled where it has proved itself, else plain with a warning.

    Raises:
        ValueError: If the backend is unknown.
        RuntimeError: If "compiled" is asked for where it cannot be used.
    """
    one_of(backend, ("auto", "compiled", "plain"), "backend")
    if backend == "plain":
        return PlainBackend()
    fault = _fault()
    if fault is None:
        from immiscible_envs.compiled import CompiledBackend

        return CompiledBackend(num_envs, threads)
    if backend == "compiled":
        raise RuntimeError(f"backend 'compiled' cannot be used here ({fault}); backend='plain' gives the same results")
    _warn_once(fault)
    return PlainBackend()


@cache
def _warn_once(fault: str) -> None:
    warnings.warn(f"PushT runs its plain backend, with the same results but slower: {fault}", stacklevel=2)


@cache
def _fault() -> str | None:
    """Why the compiled backend cannot be used in this process, or None if it can."""
    if sys.platform == "win32" or platform.machine().lower() not in MACHINES:
        return f"no compiled backend for {sys.platform} on {platform.machine()}"
    if find_spec("numba") is None:
        return "numba is not installed"
    try:
        passed = _remembered()
        if not passed.exists():
            check()
            with suppress(OSError):  # nowhere to write: every process checks for itself
                passed.parent.mkdir(parents=True, exist_ok=True)
                passed.touch()
    except Exception as error:  # whatever keeps it from running: the plain backend has the same results
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def check() -> None:
    """Push blocks about with both backends; a RuntimeError if any bit of states, contacts or coverage differs."""
    from immiscible_envs.compiled import CompiledBackend

    plain, compiled = _replay(PlainBackend()), _replay(CompiledBackend(CHECK_ROWS, threads=2))
    for name, one, other in zip(("states", "contacts", "coverage"), plain, compiled, strict=True):
        different = np.sum(one.view(np.int64) != other.view(np.int64))
        if different:
            raise RuntimeError(f"compiled and plain {name} differ in {different} of {one.size} numbers")


def _replay(backend: PlainBackend) -> tuple[Array, Integers, Array]:
    """States, contacts and coverage of random pushes: in one call, then step by step."""
    random = np.random.default_rng(0)
    for row in range(CHECK_ROWS):
        simulation = Simulation()
        simulation.reset([*random.uniform(60, 450, 2), *random.uniform(150, 350, 2), random.uniform(0, 7)])
        backend.attach(row, simulation)
    actions = np.clip(random.normal(256, 150, (CHECK_ROWS, CHECK_STEPS, 2)), 0, 512)
    rows = np.arange(CHECK_ROWS)
    chunks = [actions[:, : CHECK_STEPS // 2], *np.split(actions, CHECK_STEPS, axis=1)[CHECK_STEPS // 2 :]]
    pieces = [backend.advance(rows, chunk) for chunk in chunks]
    states, n_contacts = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
    poses = states[..., 2:].reshape(-1, 3)
    near = np.array(GOAL_POSE) + random.normal(size=poses.shape) * (30, 30, 0.5)
    covered = [backend.coverage(poses, near), backend.coverage(near, np.tile(GOAL_POSE, (len(near), 1)))]
    return states, n_contacts, np.array(covered)


def _remembered() -> Path:
    """The file that stands for a passed check of these versions, this processor and this code."""
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    processor = get_host_cpu_name() + get_host_cpu_features().flatten()
    facts = [sys.version, platform.platform(), processor, *(f"{name} {version(name)}" for name in CHECKED_PACKAGES)]
    sources = [files("immiscible_envs").joinpath(name).read_text() for name in CHECKED_SOURCES]
    digest = hashlib.sha256("\n".join(facts + sources).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "immiscible-policy" / f"pusht-backend-{digest[:16]}"
