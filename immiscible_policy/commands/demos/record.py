"""`python -m immiscible_policy.demos record`: demonstrate a task by hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from immiscible_policy.cli import REQUIRED, SEED, CommandError, Option, parse, require_writable
from immiscible_policy.commands.demos import TASK
from immiscible_policy.demos.append import append_episode, drop_unfinished, recorded_ends
from immiscible_policy.tasks import find_task

USAGE = """usage: python -m immiscible_policy.demos record out=PATH.zarr [seed=0 task=TASK]

Opens a window in which you demonstrate the task, and explains its keys. Every episode is saved when it ends."""
OPTIONS = {
    "out": Option(Path, REQUIRED, "store to record into; a store that this command made is extended"),
    "seed": Option(SEED, 0, "seed of the starts"),
    "task": TASK,
}
MADE = {"made_by": "a person with the mouse", "command": "python -m immiscible_policy.demos record"}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    path, seed, task = options["out"], options["seed"], find_task(options["task"])
    if path.exists() and not made_here(path):
        raise CommandError(f"out={path} is not a store that this command made; give a new path")
    require_writable("out", path)
    if len(recorded_ends(path)):
        drop_unfinished(path)
    print(task.teleoperation, flush=True)
    task.teleoperate(partial(append_episode, path, attrs=MADE), len(recorded_ends(path)), seed)
    print(f"{len(recorded_ends(path))} episodes in {path}")


def made_here(path: Path) -> bool:
    """Whether a store was made by this command."""
    try:
        attributes = json.loads((path / ".zattrs").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(attributes, dict) and MADE.items() <= attributes.items()
