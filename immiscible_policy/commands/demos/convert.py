"""`python -m immiscible_policy.demos convert`."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.commands.demos import SHOWN, shown_task
from immiscible_policy.demos.convert import convert

USAGE = """usage: python -m immiscible_policy.demos convert path=DIR out=STORE [task=TASK]

Converts a dataset of LeRobot's format 2 or 3 to a store, cameras too. Of one that `export` did not write, the features
keep LeRobot's names; task=pusht makes PushT's arrays from those of lerobot/pusht_keypoints, without cameras.
Needs pyarrow: pip install 'immiscible-policy[lerobot]'"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "directory of the dataset, with meta/info.json and data/"),
    "out": Option(Path, REQUIRED, "store to create (a .zarr directory)"),
    "task": SHOWN,
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    task = shown_task(options)
    fps = task.fps if task.has_environment else None
    arrays, ends = convert(options["path"], options["out"], task.name, fps, task.columns, task.from_features)
    print(f"{options['out']}: {len(ends)} episodes, {ends[-1]:,} steps of {', '.join(arrays)} (task={task.name})")
