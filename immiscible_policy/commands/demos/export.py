"""`python -m immiscible_policy.demos export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option, parse, unknown
from immiscible_policy.commands.demos import PATH, SHOWN, shown_task
from immiscible_policy.demos.export import export
from immiscible_policy.demos.store import open_store

IMAGES = ("none", "stored", "rendered")
USAGE = """usage: python -m immiscible_policy.demos export path=STORE out=DIR [images=stored|rendered task=TASK fps=HZ]

Writes a store as a dataset of LeRobot's format 3; `convert` turns it back into a store, whose arrays
have the same numbers, those of a step in a row. Needs pyarrow: pip install 'immiscible-policy[lerobot]'

example:
  python -m immiscible_policy.demos export path=STORE out=expert
  lerobot-train --policy.type=diffusion --dataset.repo_id=local/expert --dataset.root=expert"""
OPTIONS = {
    "path": PATH,
    "out": Option(Path, REQUIRED, "directory to create"),
    "images": Option(str, "none", "none, stored (the store's own) or rendered (drawn from the states)"),
    "task": SHOWN,
    "fps": Option(COUNT, None, "steps per second; none: as the data or the task's environment say"),
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    if options["images"] not in IMAGES:
        raise CommandError(unknown("images", options["images"], IMAGES))
    task = shown_task(options)
    demos = open_store(options["path"], task.columns)
    fps = options["fps"] or demos.fps or (task.fps if task.has_environment else None)
    if fps is None:
        raise CommandError(f"path={options['path']}: says nothing of its steps per second; give fps=")
    shown: dict[str, np.ndarray] = {}
    if options["images"] != "none":
        observations = task.observations or [",".join(demos.frames)]
        frames = next(filter(None, (task.frames(demos, obs, options["images"]) for obs in observations)), {})
        if not frames:
            raise CommandError(f"images={options['images']}: task={task.name} sees no pictures; leave it out")
        shown = {camera: pictures.numpy() for camera, pictures in frames.items()}
    export(demos, options["out"], task.features(demos), shown, robot=task.name, fps=fps, instruction=task.instruction)
    print(f"{options['out']}: {demos.n_episodes} episodes, {len(demos):,} steps")
