"""The physics of PushT and nothing else: a round agent on a spring pushes a T between four walls.

Ten physics substeps make one control step::

    control  |---------------------- action a ----------------------|   10 Hz
    physics  |----|----|----|----|----|----|----|----|----|----|        100 Hz
              each: v += (100 (a - p) - 20 v) dt;  then the space advances by dt
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pymunk
from numpy.typing import NDArray

from immiscible_envs.checks import finite, one_of
from immiscible_envs.geometry import BAR, CENTER_OF_GRAVITY, STEM, Array, keypoints

WORKSPACE = 512.0  # px, side of the square
CONTROL_HZ = 10
PHYSICS_HZ = 100
SUBSTEPS = PHYSICS_HZ // CONTROL_HZ
DT = 1.0 / PHYSICS_HZ
STIFFNESS = 100.0  # 1/s^2, pull of the agent towards its command
FRICTION = 20.0  # 1/s, brake on the agent's velocity
AGENT_RADIUS = 15.0
BLOCK_MASS = 1.0
WALL_RADIUS = 2.0
WALL_CORNERS = ((5.0, 5.0), (506.0, 5.0), (506.0, 506.0), (5.0, 506.0))

Order = Literal["angle_first", "position_first"]
ORDERS: tuple[Order, ...] = ("angle_first", "position_first")


class Simulation:
    """PushT's physics in pymunk.

    Every reset builds a new `space` of pymunk with `agent` and `block`, so that nothing of an earlier episode survives
    it, the solver's contact cache included: a reset, and all that follows it, is a pure function of start and actions.
    """

    def __init__(self) -> None:
        """Build the space with agent and block at their default places, not yet advanced."""
        self.space: pymunk.Space
        self.agent: pymunk.Body
        self.block: pymunk.Body
        self._build()

    def reset(self, state: Sequence[float] | Array, order: Order = "angle_first") -> None:
        """Start from a state: place agent and block at rest, then advance the physics by one substep.

        The body turns about its centre of gravity, which is not the origin of its frame, so the order counts:
        "angle_first" puts the block frame's origin where the state says; "position_first" then turns it away
        by `cog - R(angle) cog` (the published evaluation protocol; its numbers are not a pose).

        The state (5,) is agent x, y, block x, y in px, block angle in rad.

        Raises:
            ValueError: If the state has another shape, is not finite, or the order is unknown.
        """
        values = finite(state, (5,), "state").tolist()
        one_of(order, ORDERS, "order")
        self._build()
        self.agent.position = values[0], values[1]
        if order == "angle_first":
            self.block.angle = values[4]
            self.block.position = values[2], values[3]
        else:
            self.block.position = values[2], values[3]
            self.block.angle = values[4]
        self.space.step(DT)
        self._contact_points = 0

    def step(self, action: Sequence[float] | Array) -> None:
        """Advance by ten substeps with the agent drawn towards the action (2,), px, inside the workspace or not."""
        target_x, target_y = float(action[0]), float(action[1])
        agent, space = self.agent, self.space
        self._contact_points = 0
        for _ in range(SUBSTEPS):
            x, y = agent.position
            vx, vy = agent.velocity
            agent.velocity = (
                vx + (STIFFNESS * (target_x - x) - FRICTION * vx) * DT,
                vy + (STIFFNESS * (target_y - y) - FRICTION * vy) * DT,
            )
            space.step(DT)

    @property
    def state(self) -> Array:
        """(5,) float64: agent x, y, block x, y in px, block angle in [0, 2 pi] rad."""
        block = self.block
        return np.array([*self.agent.position, *block.position, block.angle % math.tau])

    @property
    def n_contacts(self) -> int:
        """Contact points per substep of the last control step, rounded up; 0 after a reset.

        The block's contacts count, with the agent and with the walls. A row of the human demonstrations holds
        the contacts of the step that its action makes; replayed open loop, 97.5% of the rows agree. In the
        others contact begins or ends within the step. The stored numbers fit better (98.4%) a step that
        begins at rest in the stored state, as if counted later, row by row, from the recorded states.
        """
        return math.ceil(self._contact_points / SUBSTEPS)

    def _build(self) -> None:
        self._contact_points = 0
        space: Any = pymunk.Space()
        self.space = space
        space.gravity, space.damping = (0.0, 0.0), 0.0
        for start, end in zip(WALL_CORNERS, WALL_CORNERS[1:] + WALL_CORNERS[:1], strict=True):
            space.add(pymunk.Segment(space.static_body, start, end, WALL_RADIUS))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.agent.position = 256.0, 400.0
        space.add(self.agent, pymunk.Circle(self.agent, AGENT_RADIUS))
        # Twice the bar's moment, not bar and stem: a quirk of the published environment that is part of the task.
        self.block = pymunk.Body(BLOCK_MASS, 2.0 * pymunk.moment_for_poly(BLOCK_MASS, BAR.tolist()))
        bar, stem = (pymunk.Poly(self.block, part.tolist()) for part in (BAR, STEM))
        self.block.center_of_gravity = CENTER_OF_GRAVITY
        self.block.position = 256.0, 300.0
        space.add(self.block, bar, stem)
        if hasattr(space, "on_collision"):  # called for every touching pair in every substep
            space.on_collision(0, 0, post_solve=self._count)
        else:  # before pymunk 7
            space.add_collision_handler(0, 0).post_solve = self._count

    def _count(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: Any) -> None:
        self._contact_points += len(arbiter.contact_point_set.points)


class RecordedSimulation:
    """Steps a simulation, from its present state, and records every step of a demonstration."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.states: list[Array] = []
        self.actions: list[Array] = []
        self.n_contacts: list[int] = []

    @property
    def state(self) -> Array:
        """(5,) the simulation's present state."""
        return self.simulation.state

    def step(self, action: Array) -> None:
        """Advance by one control step towards the action (2,), px, and record it."""
        self.states.append(self.state)
        self.actions.append(action)
        self.simulation.step(action)
        self.n_contacts.append(self.simulation.n_contacts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What happened so far, under the names of a store's arrays.

        Returns:
            state (n, 5) float64, before the action of the same row; action (n, 2) and keypoint (n, 9, 2) float32;
            n_contacts (n, 1) float32, of the step that the row's action makes.
        """
        state = np.array(self.states)
        return {
            "state": state,
            "action": np.array(self.actions, dtype=np.float32),
            "keypoint": keypoints(state[:, 2:]).astype(np.float32),
            "n_contacts": np.array(self.n_contacts, dtype=np.float32)[:, None],
        }
