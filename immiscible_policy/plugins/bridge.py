"""Checkpoints of any project: ours, Diffusion Policy's `.ckpt`, LeRobot's directories.

Loading executes nothing of what is read.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import CommandError, require_writable, unknown
from immiscible_policy.evaluation.agent import load_policy, spec_metadata
from immiscible_policy.plugins.diffusion_policy_checkpoint import read_diffusion_policy, write_diffusion_policy
from immiscible_policy.plugins.lerobot_checkpoint import read_lerobot, write_lerobot
from immiscible_policy.store.checkpoint import Checkpoint, read_checkpoint, save_checkpoint

FORMATS = ("ours", "lerobot", "diffusion_policy")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any project: a directory of ours or of LeRobot, or a `.ckpt` file of Diffusion Policy.

    Raises CheckpointError if it is not one, is damaged or malicious, or has a policy of another architecture.
    """
    path = Path(path)
    if path.is_file():
        return read_diffusion_policy(path)
    return read_lerobot(path) if (path / "config.json").is_file() else read_checkpoint(path)


def convert(checkpoint: Path, to: str, out: Path) -> None:
    """Write a checkpoint, one that `open_checkpoint` takes, in one of the `FORMATS`.

    Raises:
        CommandError: If the format is unknown or `out` exists.
        CheckpointError: If the checkpoint cannot be read, or has no counterpart there.
    """
    if to not in FORMATS:
        raise CommandError(unknown("format", to, FORMATS))
    if out.exists():
        raise CommandError(f"out={out} exists already; name another")
    require_writable("out", out)
    source = open_checkpoint(checkpoint)
    _, spec = load_policy(source)  # the weights fit, or one line says that they do not
    if to == "lerobot":
        return write_lerobot(source, spec, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "diffusion_policy":
        return write_diffusion_policy(source, spec, out)
    metadata = {"step": source.step, "seed": source.metadata["seed"], "source": str(source.path.name)}
    weights = {name: source.tensors(name) for name in ("model", "ema")}
    save_checkpoint(out, spec_metadata(spec) | metadata, weights)
