"""`python -m immiscible_policy.demos make`: demonstrations by a task's scripted expert."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.progress import track

from immiscible_policy.cli import COUNT, REQUIRED, SEED, Option, parse, require_new, whole
from immiscible_policy.commands.demos import TASK
from immiscible_policy.demos.store import content_hash, write_store
from immiscible_policy.tasks import find_task

USAGE = """usage: python -m immiscible_policy.demos make out=STORE [KEY=VALUE ...]

Makes demonstrations with the task's scripted expert. The same options make the same store, bit for bit. Given
only out= and task=, it makes the store that ships with the project."""
OPTIONS = {
    "out": Option(Path, REQUIRED, "store to write (a .zarr directory that does not exist)"),
    "episodes": Option(COUNT, None, "number of demonstrations; by default as many as the task's own store has"),
    "seed": Option(SEED, 0, "seed of the starts and of the noise on the actions"),
    "noise": Option(float, None, "strength of the noise on the expert's actions; by default the expert's own"),
    "workers": Option(whole(0, 1024), 1, "processes"),
    "task": TASK,
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    task = find_task(options["task"])
    require_new("out", options["out"])
    count = task.expert_episodes if options["episodes"] is None else options["episodes"]
    making = task.make_episodes(count, options["seed"], options["workers"], options["noise"])
    made = list(track(making, "episodes", total=count, disable=not sys.stdout.isatty()))
    arrays = {name: np.concatenate([episode[name] for episode in made]) for name in made[0]}
    ends = np.cumsum([len(episode[task.action]) for episode in made])
    attrs = dict(task.made_by) | {
        "command": "python -m immiscible_policy.demos make",
        "episodes": count,
        "seed": options["seed"],
        "noise": options["noise"],
        "task": task.name,
        "numpy": np.__version__,
    }
    write_store(options["out"], arrays, ends, attrs)
    print(f"{options['out']}: {len(ends)} episodes, {ends[-1]} steps, content {content_hash(options['out'])}")
