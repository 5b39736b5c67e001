"""`python -m immiscible_policy convert`: exchange checkpoints with Diffusion Policy and LeRobot."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, SEED, Option, parse
from immiscible_policy.plugins.bridge import FORMATS, convert

USAGE = """usage: python -m immiscible_policy convert checkpoint=PATH to=ours|compact|lerobot|diffusion_policy out=PATH

Converts a policy between projects. Both give the same actions from the same noise.

  python -m immiscible_policy convert checkpoint=runs/mine/seed_0/checkpoints/step_003000 to=lerobot out=for_lerobot
  python -m immiscible_policy convert checkpoint=runs/mine/seed_0/checkpoints/step_003000 to=compact out=small
  python -m immiscible_policy convert checkpoint=latest.ckpt to=ours out=from_diffusion_policy/step_000000
"""
OPTIONS = {
    "checkpoint": Option(
        Path, REQUIRED, "ours, a run (its best), a .ckpt of Diffusion Policy, or a directory of LeRobot"
    ),
    "to": Option(str, REQUIRED, ", ".join(FORMATS)),
    "train_seed": Option(SEED, None, "the training seed of a run that has several"),
    "out": Option(Path, REQUIRED, "what to create: a directory, and for diffusion_policy a file"),
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    convert(options["checkpoint"], options["to"], options["out"], options["train_seed"])
    print(f"wrote {options['out']}")
