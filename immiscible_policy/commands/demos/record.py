"""`python -m immiscible_policy.demos record`: demonstrate PushT with the mouse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable
from immiscible_policy.demos.append import append_episode, recorded_ends

USAGE = """usage: python -m immiscible_policy.demos record out=PATH.zarr [seed=0]

Push the T onto the green goal with the mouse. Touch the blue agent with the pointer to take hold of it; from
then on it follows the pointer and every step (0.1 s) is recorded. Covering the goal saves the episode and
begins the next.

keys:
  R  retry: drop this episode and begin it again
  S  save this episode as it is and begin the next
  Q  quit: drop this episode; all saved ones are in the store

example: python -m immiscible_policy.demos record out=demos.zarr seed=7"""
OPTIONS = {
    "out": Option(Path, REQUIRED, "store to record into; one that this command made is continued"),
    "seed": Option(int, 0, "whole number >= 0 that the starts are drawn from, with the number of the episode"),
}
MADE = {"made_by": "a person at the mouse", "command": "python -m immiscible_policy.demos record"}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    path, seed = options["out"], options["seed"]
    if seed < 0:
        raise CommandError(f"seed={seed}: not a whole number >= 0")
    if path.exists() and not made_here(path):
        raise CommandError(f"out={path} is not a store that this command made; give a new path")
    require_writable("out", path)
    from immiscible_envs.teleop import Session, run_session  # opens pygame

    run_session(Session(partial(append_episode, path, attrs=MADE), len(recorded_ends(path)), seed))
    print(f"{len(recorded_ends(path))} episodes in {path}")


def made_here(path: Path) -> bool:
    """Whether a store was made by this command."""
    try:
        attributes = json.loads((path / ".zattrs").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(attributes, dict) and MADE.items() <= attributes.items()
