"""`python -m immiscible_policy.demos make`: demonstrations of PushT by the scripted expert."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pymunk
from rich.progress import track

from immiscible_envs import expert
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable
from immiscible_policy.demos.store import content_hash, write_store

USAGE = """usage: python -m immiscible_policy.demos make out=STORE

Makes PushT demonstrations with a scripted expert, which plans a few pushes ahead and carries them out in the
simulation. The same words make the same store, bit for bit; without any but out= it is the project's own.

example: python -m immiscible_policy.demos make out=data/pusht_expert.zarr"""
OPTIONS = {
    "out": Option(Path, REQUIRED, "store to write (a .zarr directory that does not exist)"),
    "episodes": Option(int, 220, "demonstrations"),
    "seed": Option(int, 0, "source of the starts and of the disturbances"),
    "workers": Option(int, 1, "processes"),
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    if options["out"].exists():
        raise CommandError(f"out={options['out']} exists already; choose another path or remove it first")
    require_writable("out", options["out"])
    making = expert.make_episodes(options["episodes"], options["seed"], options["workers"])
    made = list(track(making, "episodes", total=options["episodes"], disable=not sys.stdout.isatty()))
    arrays = {name: np.concatenate([episode[name] for episode in made]) for name in made[0]}
    ends = np.cumsum([len(episode["state"]) for episode in made])
    attrs = {
        "made_by": "a scripted expert: planned pushes carried out in immiscible_envs.simulation, no human data",
        "command": "python -m immiscible_policy.demos make",
        "episodes": options["episodes"],
        "seed": options["seed"],
        "pymunk": pymunk.version,
        "numpy": np.__version__,
    }
    write_store(options["out"], arrays, ends, attrs)
    print(f"{options['out']}: {len(ends)} episodes, {ends[-1]} steps, content {content_hash(options['out'])}")
