"""Demonstrate PushT with the mouse; what is done with an episode is the caller's.

Push the T onto the green goal. Touch the blue agent with the pointer to take hold of it; from then on it follows the
pointer and every step (0.1 s) is recorded. Covering the goal saves the episode and begins the next. Keys: R retries,
S saves the episode as it is, Q quits; the window says so too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immiscible_envs.geometry import GOAL_POSE, Array, coverage
from immiscible_envs.pusht import IMAGE_SIZE, SUCCESS_COVERAGE, random_start
from immiscible_envs.rendering import CANVAS, LINE, Window, pygame, render_state, with_text
from immiscible_envs.simulation import AGENT_RADIUS, CONTROL_HZ, WORKSPACE, RecordedSimulation, Simulation

Save = Callable[[Mapping[str, NDArray[Any]]], object]


class Session:
    """A person at the mouse: what their events do, tick by tick, without a window.

    It is `running` until they quit. Time passes and is recorded only while the agent is `held`.
    """

    def __init__(self, save: Save, episode: int = 0, seed: int = 0) -> None:
        """Begin an episode; number e begins where `numpy.random.default_rng([seed, e])` puts it.

        Each one that is finished goes to `save`: `RecordedSimulation.arrays`, and `img` (n, 96, 96, 3) uint8.
        """
        self.running, self.held, self.episode = True, False, episode
        self._pointer: Array | None = None
        self._save, self._seed = save, seed
        self._begin()

    @property
    def picture(self) -> Any:
        """The canvas with what can be done now below it, (512, 512 + height of the text, 3) uint8."""
        return with_text(render_state(self._recording.state, GOAL_POSE, CANVAS), [self.advice, self.status])

    @property
    def advice(self) -> str:
        """What to do now."""
        return "Push the T onto the green goal" if self.held else "Touch the blue agent with the pointer to begin"

    @property
    def status(self) -> str:
        """The keys, and how far the episode is."""
        covered, steps = coverage(self._recording.state[2:]), len(self._recording.states)
        return f"R retry   S save   Q quit      episode {self.episode}   step {steps}   coverage {covered:.2f}"

    def handle(self, event: Any) -> None:
        """Take one pygame event."""
        if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_q):
            self.running = False
        elif event.type == pygame.MOUSEMOTION:
            self._pointer = np.clip(np.array(event.pos, dtype=np.float64), 0.0, WORKSPACE)
        elif event.type == pygame.KEYDOWN and event.key == pygame.K_r:
            self._begin()
        elif event.type == pygame.KEYDOWN and event.key == pygame.K_s and self._recording.states:
            self._finish()

    def tick(self) -> None:
        """Let 0.1 s pass: step and record if the agent is held, and save the episode if it has succeeded."""
        if not self.running or self._pointer is None:
            return
        self.held = self.held or math.dist(self._pointer, self._recording.state[:2]) < AGENT_RADIUS
        if not self.held:
            return
        self._recording.step(self._pointer)
        if coverage(self._recording.state[2:]) > SUCCESS_COVERAGE:
            self._finish()

    def _begin(self) -> None:
        simulation = Simulation()
        simulation.reset(random_start(np.random.default_rng([self._seed, self.episode])))
        self._recording = RecordedSimulation(simulation)
        self._pointer = None
        self.held = False

    def _finish(self) -> None:
        pictures = np.stack([render_state(state, GOAL_POSE, IMAGE_SIZE) for state in self._recording.states])
        self._save({**self._recording.arrays(), "img": pictures})
        self.episode += 1
        self._begin()


def run_session(session: Session) -> None:
    """Open a window and let the person demonstrate until they quit.

    Raises OSError if there is no display, or an episode cannot be saved.
    """
    window = Window("PushT: demonstrate with the mouse", (CANVAS, CANVAS + 2 * LINE))
    try:
        while session.running:
            window.show(session.picture, CONTROL_HZ)
            for event in pygame.event.get():
                session.handle(event)
            session.tick()
    finally:
        window.close()
