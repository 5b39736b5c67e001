"""`python -m immiscible_policy.demos convert`."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.commands.demos import TASK
from immiscible_policy.demos.convert import convert
from immiscible_policy.tasks import find_task

USAGE = """usage: python -m immiscible_policy.demos convert path=DIR out=STORE [task=TASK]

Converts a dataset of LeRobot's format 2 or 3 to a store: one that `export` wrote, or one with the features that the
task can be read from. Needs pyarrow: pip install 'immiscible-policy[lerobot]'"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "directory of the dataset, with meta/info.json and data/"),
    "out": Option(Path, REQUIRED, "store to create (a .zarr directory)"),
    "task": TASK,
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    task = find_task(options["task"])
    fps = task.fps if task.has_environment else None
    _, ends = convert(options["path"], options["out"], fps, task.columns, task.from_features)
    print(f"{options['out']}: {len(ends)} episodes, {ends[-1]:,} steps")
