"""Peers: other projects that do the same work, in an environment of their own, taking turns with ours.

Each runs as a process of `.venv-peers` (`make peers`). It is asked over a pipe and answers over another, one JSON line
each, so that it and ours alternate within one run:

    benchmark (.venv)      {"action": "step", "options": {"steps": 10}}  --->   benchmarks.peers.NAME (.venv-peers)
                           <---                                    0.243        seconds, on the peer's own clock
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_policy.cli import unknown

if TYPE_CHECKING:
    from immiscible_policy.recipes.robot_config import RobotConfig

ROOT = Path(__file__).resolve().parents[2]
PLACES = os.pathsep.join(map(str, (ROOT / "lerobot_policy_immiscible", ROOT / "envs")))
"""Where the peers find what is ours, beside the repository's root."""
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
INSTALLED = ROOT / ".venv-peers" / ".installed"
NAMES = ("lerobot", "gym-pusht", "torchcfm")


class PeerFailed(ValueError):
    """A peer's process ended; the message is what it said last."""


def peer_names(text: str) -> tuple[str, ...]:
    """Read `peers=`: `all`, `none`, or names with commas between them.

    Raises:
        ValueError: If a name is unknown, or the peers are not installed.
    """
    if text == "none":
        return ()
    names = NAMES if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            raise ValueError(unknown("peer", name, ("all", "none", *NAMES)))
    if not INSTALLED.exists():
        raise ValueError("the peers are not installed in .venv-peers; run `make peers`, or choose peers=none")
    return names


def chosen_peers(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The peers that take part: those named, else all that are installed; says so in one line if there are none."""
    if names is not None:
        return names
    if INSTALLED.exists():
        return NAMES
    print("without peers: .venv-peers is not there; `make peers` installs them", file=sys.stderr)
    return ()


class Peer:
    """A peer's process, which does what it is asked and answers how long it took.

    Args:
        name: One of `NAMES`.
        threads: CPU threads of its numerical libraries.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()
        limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [PYTHON, "-m", f"benchmarks.peers.{name.replace('-', '_')}"],
            cwd=ROOT,
            env=os.environ | limits | {"HF_HUB_OFFLINE": "1", "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": PLACES},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the process end."""
        self._process.communicate()
        self._log.close()

    def ask(self, action: str, options: Mapping[str, Any] | None = None) -> Any:
        """Have the peer do something and wait for its answer.

        Args:
            action: A method of the peer's class.
            options: Its arguments, JSON values.

        Raises:
            PeerFailed: If it could not.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"action": action, "options": options or {}}), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise PeerFailed(f"peer {self.name} failed: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        message = self._log.read().decode(errors="replace").strip().splitlines()
        return message[-1] if message else f"it said nothing (exit code {self._process.returncode})"


def network_options(config: RobotConfig) -> dict[str, Any]:
    """What `build` of the peer `lerobot` needs to stand beside a training run of ours."""
    keys = ("down_dims", "step_embed_dim", "kernel_size", "groups", "horizon", "obs_steps", "action_steps",
            "batch_size", "sampling_steps", "precision", "threads", "device")  # fmt: skip
    return {key: getattr(config, key) for key in keys} | {"sampler": "ddim"}
