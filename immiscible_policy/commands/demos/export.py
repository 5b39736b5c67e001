"""`python -m immiscible_policy.demos export`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, unknown
from immiscible_policy.commands.demos import PATH, SHOWN, shown_task
from immiscible_policy.demos.export import export, named_features
from immiscible_policy.demos.keys import all_numbers, require_keys
from immiscible_policy.demos.store import open_store, recorded_fps
from immiscible_policy.tasks import Task

IMAGES = ("none", "stored", "rendered")
USAGE = """usage: python -m immiscible_policy.demos export path=STORE out=DIR [obs=KEYS action=KEY images=stored fps=HZ]

Writes a store as a dataset of LeRobot's format 3; `convert` turns it back into a store, whose arrays
have the same numbers, those of a step in a row. Needs pyarrow: pip install 'immiscible-policy[lerobot]'

example:
  python -m immiscible_policy.demos export path=STORE out=expert
  lerobot-train --policy.type=diffusion --dataset.repo_id=local/expert --dataset.root=expert"""


def rate(text: str) -> float:
    """Read steps per second."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("needs a number above 0")
    return number


OPTIONS = {
    "path": PATH,
    "out": Option(Path, REQUIRED, "directory to create"),
    "obs": Option(str, None, "arrays that policies see, joined by commas, and cameras; none: all numbers"),
    "action": Option(str, None, "array of the actions; none: action"),
    "images": Option(str, "none", "none, stored (the store's own) or rendered (drawn from the states)"),
    "task": SHOWN,
    "fps": Option(rate, None, "steps per second, if neither the data nor the task's environment say so"),
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    images, task = options["images"], shown_task(options)
    if images not in IMAGES:
        raise CommandError(unknown("images", images, IMAGES))
    keys, fps = seen_keys(options, task), known_fps(options, task)
    demos = open_store(options["path"], task.columns)
    cameras = [key for key in keys if key in demos.frames]
    if cameras and images == "none":
        images = "stored"
    shown: dict[str, np.ndarray] = {}
    if images != "none":
        observations = task.observations or [",".join(cameras or demos.frames)]
        frames = next(filter(None, (task.frames(demos, obs, images) for obs in observations)), {})
        if not frames:
            raise CommandError(f"images={images}: task={task.name} sees no pictures; leave it out")
        shown = {camera: pictures.numpy() for camera, pictures in frames.items()}
    numbers = [key for key in keys if key not in cameras]
    own = not task.observations
    features = named_features(demos, numbers, options["action"] or task.action) if own else task.features(demos)
    export(demos, options["out"], features, shown, robot=task.name, fps=fps, instruction=task.instruction)
    print(f"{options['out']}: {demos.n_episodes} episodes, {len(demos):,} steps at {fps:g} Hz")
    for name, feature in features.items():
        print(f"  {name}: {', '.join(feature.names or [f'{feature.values.shape[1]} numbers'])}")
    for camera, pictures in shown.items():
        print(f"  {camera}: pictures of {pictures.shape[1]} x {pictures.shape[2]} pixels")


def seen_keys(options: Mapping[str, Any], task: Task) -> list[str]:
    """The arrays and cameras of the store that policies see; none where the task names its own.

    Raises CommandError if one of them or the actions do not fit.
    """
    path, obs, action = options["path"], options["obs"], options["action"] or task.action
    if not task.observations:
        keys = obs.split(",") if obs else all_numbers(path, action)
        require_keys(path, ",".join(keys), action)
        return keys
    for key in ("obs", "action"):
        if options[key]:
            raise CommandError(f"{key}={options[key]}: task={task.name} names its own; leave it out, or use task=none")
    return []


def known_fps(options: Mapping[str, Any], task: Task) -> float:
    """The steps per second of the data; a CommandError if nothing states them, or `fps=` says otherwise."""
    recorded = recorded_fps(options["path"]) or (task.fps if task.has_environment else None)
    if recorded and options["fps"] not in (None, recorded):
        raise CommandError(f"fps={options['fps']:g}: these were recorded at {recorded:g} Hz; leave it out")
    if not (fps := recorded or options["fps"]):
        raise CommandError(f"path={options['path']}: states no steps per second; give fps=")
    return fps
