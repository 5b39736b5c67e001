"""Turn a checkpoint of a policy type of this plugin into one of LeRobot's own type, which needs no plugin."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_new, run
from lerobot_policy_immiscible.noise_options import NoiseOptions
from lerobot_policy_immiscible.training_noise import POLICIES

USAGE = """usage: python -m lerobot_policy_immiscible.to_lerobot path=DIR out=DIR

Copies a checkpoint (the directory pretrained_model, with config.json) and makes it one of LeRobot's own type, such as
diffusion or smolvla; the weights and the processors stay byte for byte.

example:
  python -m lerobot_policy_immiscible.to_lerobot path=outputs/checkpoints/last/pretrained_model out=plain"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "checkpoint of a type of this plugin, a directory with config.json"),
    "out": Option(Path, REQUIRED, "directory to create"),
}
OWN = {option.name for option in fields(NoiseOptions)}


def main(argv: list[str]) -> None:
    """Run the command."""
    words = parse(argv, OPTIONS, USAGE)
    print(f"{words['out']}: type {to_lerobot(words['path'], words['out'])}")


def to_lerobot(path: Path, out: Path) -> str:
    """Write a checkpoint of LeRobot's own type; it appears whole or not at all.

    Args:
        path: Checkpoint of a type of this plugin.
        out: Directory to create.

    Returns:
        LeRobot's type.

    Raises:
        CommandError: If there is no such checkpoint, it is of another type, or `out` exists.
    """
    config = _read(path / "config.json")
    if config.get("type") not in POLICIES:
        raise CommandError(f"{path}: a checkpoint of type {config.get('type')}; only {', '.join(POLICIES)} convert")
    require_new("out", out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(shutil.copytree(path, Path(scratch, "checkpoint")))
        _write(draft / "config.json", plain(config))
        training = draft / "train_config.json"
        if training.exists():
            described = _read(training)
            _write(training, described | {"policy": plain(described["policy"])})
        draft.rename(out)
    return POLICIES[config["type"]]


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A policy's configuration without the options of this plugin, of LeRobot's own type."""
    return {key: value for key, value in config.items() if key not in OWN} | {"type": POLICIES[config["type"]]}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CommandError(f"{file}: is missing; path= needs a checkpoint's directory pretrained_model")
    return json.loads(file.read_text())


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=4))


if __name__ == "__main__":
    run(main)
