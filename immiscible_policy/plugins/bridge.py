"""Checkpoints between projects: ours, Diffusion Policy's `.ckpt`, LeRobot's directories.

`open_checkpoint` takes any of them and gives what evaluation takes; `convert` writes any as any other. Loading
executes nothing of what is read.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable, unknown
from immiscible_policy.evaluation.agent import load_policy, spec_metadata
from immiscible_policy.plugins.diffusion_policy_checkpoint import read_diffusion_policy, write_diffusion_policy
from immiscible_policy.plugins.lerobot_checkpoint import read_lerobot, write_lerobot
from immiscible_policy.store.checkpoint import Checkpoint, read_checkpoint, save_checkpoint

USAGE = """\
usage: python -m immiscible_policy convert checkpoint=PATH to=ours|lerobot|diffusion_policy out=PATH

Write a policy of one project for another; the policies give the same actions from the same noise.

  python -m immiscible_policy convert checkpoint=runs/mine/seed_0/checkpoints/step_003000 to=lerobot out=for_lerobot
  python -m immiscible_policy convert checkpoint=latest.ckpt to=ours out=from_diffusion_policy/step_000000
"""
FORMATS = ("ours", "lerobot", "diffusion_policy")
OPTIONS = {
    "checkpoint": Option(Path, REQUIRED, "ours, a .ckpt of Diffusion Policy, or a directory of LeRobot"),
    "to": Option(str, REQUIRED, "ours, lerobot or diffusion_policy"),
    "out": Option(Path, REQUIRED, "what to create: a directory, and for diffusion_policy a file"),
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any project: a directory of ours or of LeRobot, or a `.ckpt` file of Diffusion Policy.

    Raises:
        CheckpointError: If it is none, is damaged or malicious, or holds a policy of another architecture.
    """
    path = Path(path)
    if path.is_file():
        return read_diffusion_policy(path)
    return read_lerobot(path) if (path / "config.json").is_file() else read_checkpoint(path)


def convert(checkpoint: Path, to: str, out: Path) -> None:
    """Write a checkpoint in another project's format.

    Args:
        checkpoint: As `open_checkpoint` takes it.
        to: One of `FORMATS`.
        out: What to create.

    Raises:
        CommandError: If the format is unknown or `out` exists.
        CheckpointError: If the checkpoint cannot be read, or has no counterpart there.
    """
    if to not in FORMATS:
        raise CommandError(unknown("format", to, FORMATS))
    if out.exists():
        raise CommandError(f"out={out} exists already; name another")
    require_writable("out", out)
    found = open_checkpoint(checkpoint)
    _, spec = load_policy(found)  # the weights fit, or one line says that they do not
    if to == "lerobot":
        return write_lerobot(found, spec, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "diffusion_policy":
        return write_diffusion_policy(found, spec, out)
    metadata = {"step": found.step, "seed": found.metadata["seed"], "source": str(found.path.name)}
    weights = {name: found.tensors(name) for name in ("model", "ema")}
    save_checkpoint(out, spec_metadata(spec) | metadata, weights)


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    convert(options["checkpoint"], options["to"], options["out"])
    print(f"wrote {options['out']}")
