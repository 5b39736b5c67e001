"""Demonstrate PushT with the mouse and record it: `python -m immiscible_envs.teleop out=PATH.zarr`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_envs.geometry import GOAL_POSE, Array, coverage, keypoints
from immiscible_envs.pusht import IMAGE_SIZE, SUCCESS_COVERAGE, random_start
from immiscible_envs.recorder import Recorder
from immiscible_envs.rendering import CANVAS, Window, pygame, render_state
from immiscible_envs.simulation import AGENT_RADIUS, CONTROL_HZ, WORKSPACE, Simulation

USAGE = """usage: python -m immiscible_envs.teleop out=PATH.zarr [seed=0]

Push the T onto the green goal with the mouse. Touch the blue agent with the pointer to take hold of it; from
then on it follows the pointer and every step (0.1 s) is recorded. Covering the goal saves the episode and
begins the next.

keys:
  R  retry: drop this episode and begin it again
  S  save this episode as it is and begin the next
  Q  quit: drop this episode; all saved ones are in the store

options:
  out   the store to record into; one that exists is continued (required)
  seed  whole number >= 0 that the starts are drawn from, with the number of the episode (default 0)

examples:
  python -m immiscible_envs.teleop out=demos.zarr
  python -m immiscible_envs.teleop out=demos.zarr seed=7"""


class Session:
    """A person at the mouse: what their events do, tick by tick, without a window.

    Attributes:
        running: False once they have quit.
        held: Whether they have taken hold of the agent; only then time passes and is recorded.
    """

    def __init__(self, recorder: Recorder, seed: int = 0) -> None:
        """Begin the episode that comes after those in the store."""
        self.running = True
        self._recorder = recorder
        self._seed = seed
        self._simulation = Simulation()
        self._pointer: Array | None = None
        self._steps: list[dict[str, Any]] = []
        self.held = False
        self._begin()

    @property
    def picture(self) -> Any:
        """The canvas, (512, 512, 3) uint8."""
        return render_state(self._simulation.state, GOAL_POSE, CANVAS)

    @property
    def title(self) -> str:
        """One line for the window's title."""
        now = f"episode {self._number}, step {len(self._steps)}, coverage {self._coverage():.2f}"
        return f"PushT - {now} - R retry, S save, Q quit"

    def handle(self, event: Any) -> None:
        """Take one pygame event."""
        if event.type == pygame.QUIT:
            self.running = False
        elif event.type == pygame.MOUSEMOTION:
            self._pointer = np.clip(np.array(event.pos, dtype=np.float64), 0.0, WORKSPACE)
        elif event.type == pygame.KEYDOWN:
            self._press(event.key)

    def tick(self) -> None:
        """Let 0.1 s pass: step and record if the agent is held, and save the episode if it has succeeded."""
        if not self.running or self._pointer is None:
            return
        self.held = self.held or math.dist(self._pointer, self._simulation.state[:2]) < AGENT_RADIUS
        if not self.held:
            return
        self._steps.append(self._step(self._pointer))
        if self._coverage() > SUCCESS_COVERAGE:
            self._save()

    def _press(self, key: int) -> None:
        if key == pygame.K_q:
            self.running = False
        elif key == pygame.K_r:
            self._begin()
        elif key == pygame.K_s and self._steps:
            self._save()

    def _begin(self) -> None:
        self._number = len(self._recorder.episode_ends)
        self._steps, self._pointer, self.held = [], None, False
        self._simulation.reset(random_start(np.random.default_rng([self._seed, self._number])))

    def _step(self, action: Array) -> dict[str, Any]:
        state = self._simulation.state
        image = render_state(state, GOAL_POSE, IMAGE_SIZE)
        self._simulation.step(action)
        contacts = [self._simulation.n_contacts]
        points = keypoints(state[2:])
        return {"state": state, "action": action, "keypoint": points, "n_contacts": contacts, "img": image}

    def _save(self) -> None:
        self._recorder.append({key: np.array([step[key] for step in self._steps]) for key in self._steps[0]})
        self._begin()

    def _coverage(self) -> float:
        return coverage(self._simulation.state[2:], GOAL_POSE)


def record(path: Path, seed: int = 0) -> int:
    """Open a window and record until the person quits.

    Args:
        path: The store; created once the window is open, continued if it exists.
        seed: Seed of the starts; episode e begins where `numpy.random.default_rng([seed, e])` puts it.

    Returns:
        Number of episodes in the store.

    Raises:
        ValueError: If something else lies at the path.
        OSError: If there is no display, or the store cannot be written.
    """
    recorder = Recorder(path)
    session = Session(recorder, seed)
    window = Window("PushT")
    try:
        recorder.create()  # a store that cannot be written is noticed before anything is demonstrated
        while session.running:
            window.show(session.picture, CONTROL_HZ, session.title)
            for event in pygame.event.get():
                session.handle(event)
            session.tick()
    finally:
        window.close()
    return len(recorder.episode_ends)


def main(words: Sequence[str]) -> None:
    """Read the `key=value` words and record.

    Raises:
        ValueError: If a word is not one that the usage lists, or is given twice.
        OSError: If there is no display, or the store cannot be written.
    """
    if any(word in ("-h", "--help", "help") for word in words):
        print(USAGE)
        return
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or key not in ("out", "seed"):
            raise ValueError(f"'{word}' is not out=PATH or seed=NUMBER; see --help")
        if key in values:
            raise ValueError(f"{key}= is given twice")
        values[key] = value
    if "out" not in values:
        raise ValueError("out= is missing: the store to record into, as in out=demos.zarr")
    seed = values.get("seed", "0")
    if not seed.isdecimal():
        raise ValueError(f"seed={seed}: not a whole number >= 0")
    path = Path(values["out"]).expanduser()
    print(f"{record(path, int(seed))} episodes in {path}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, pygame.error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
