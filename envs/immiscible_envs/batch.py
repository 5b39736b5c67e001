"""PushT's physics for many episodes at once, without Gymnasium: for the vector environment, evaluation and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from immiscible_envs.backends import make_backend
from immiscible_envs.checks import finite, inside, one_of
from immiscible_envs.geometry import GOAL_POSE, Array, Integers
from immiscible_envs.pusht import STATE_HIGH, STATE_LOW, checked_actions, checked_goals
from immiscible_envs.simulation import ORDERS, Order, Simulation

BLOCK = 64  # rows that `simulate` holds at once for each thread; many more would leave the processor's cache


class Trajectories(NamedTuple):
    """What N simulations went through in T control steps; entry 0 in time is the start.

    Attributes:
        states: (N, T + 1, 5) agent x, y, block x, y in px, block angle in [0, 2 pi] rad.
        coverage: (N, T + 1) share of the goal that the block covers.
        n_contacts: (N, T + 1) contact points per substep of the step before, rounded up; 0 at the start.
    """

    states: Array
    coverage: Array
    n_contacts: Integers


class BatchSimulation:
    """N rows, each a `Simulation` bit for bit, whatever the backend and the number of threads."""

    def __init__(self, num_envs: int, threads: int = 1, backend: str = "auto") -> None:
        """Build the rows; a ValueError for a number below 1, and the errors of `immiscible_envs.backends`."""
        for name, number in (("threads", threads), ("num_envs", num_envs)):
            if number < 1:
                raise ValueError(f"{name} {number} must be at least 1")
        self.num_envs = num_envs
        self._backend = make_backend(backend, num_envs, threads)
        self._simulations = [Simulation() for _ in range(num_envs)]
        for row, simulation in enumerate(self._simulations):
            self._backend.attach(row, simulation)
        self._states = np.array([simulation.state for simulation in self._simulations])
        self._n_contacts = np.zeros(num_envs, dtype=np.int64)

    @property
    def backend(self) -> str:
        """The backend in use, "compiled" or "plain"."""
        return self._backend.name

    @property
    def states(self) -> Array:
        """(N, 5) a copy of the states, as `Simulation.state`."""
        return self._states.copy()

    @property
    def n_contacts(self) -> Integers:
        """(N,) a copy of the contacts, as `Simulation.n_contacts`."""
        return self._n_contacts.copy()

    def reset(self, row: int, state: Sequence[float] | Array, order: Order = "angle_first") -> None:
        """Start one row anew, as `Simulation.reset` does."""
        simulation = self._simulations[row]
        simulation.reset(state, order)
        self._backend.attach(row, simulation)
        self._states[row], self._n_contacts[row] = simulation.state, 0

    def step(self, actions: Array, rows: Integers) -> None:
        """Advance some rows (R,) by one control step towards actions (R, 2), px; used as given."""
        self.run(actions[:, None], rows)

    def run(self, actions: Array, rows: Integers) -> tuple[Array, Integers]:
        """Advance rows by T >= 1 steps towards actions (R, T, 2): states (R, T, 5) and n_contacts (R, T) after each."""
        states, n_contacts = self._backend.advance(rows, actions)
        self._states[rows], self._n_contacts[rows] = states[:, -1], n_contacts[:, -1]
        return states, n_contacts

    def coverage(self, poses: Array, goals: Array) -> Array:
        """Coverage (M,) of block poses (M, 3) over goal poses (M, 3), as `geometry.coverage`."""
        return self._backend.coverage(poses, goals)


def simulate(
    states: ArrayLike,
    actions: ArrayLike,
    order: Order = "angle_first",
    goal_pose: ArrayLike = GOAL_POSE,
    threads: int = 1,
    backend: str = "auto",
) -> Trajectories:
    """Run commands open loop from given starts: what `PushTEnv` would go through, bit for bit.

    The states (N, 5) are agent x, y, block x, y in px, block angle in rad, placed in an order of `Simulation.reset`;
    the actions (N, T, 2) commanded agent positions, px, of which those outside the workspace act as its nearest point;
    the goals (3,) or (N, 3), px and rad. Threads and backend are those of `immiscible_envs.backends`.

    Raises:
        ValueError: If a shape, a number or a name is not as described.
        RuntimeError: If the backend is "compiled" and cannot be used here.
    """
    starts = finite(states, (None, 5), "states")
    count = len(starts)
    inside(starts[:, :4], STATE_LOW[:4], STATE_HIGH[:4], "states (positions)")
    commands = checked_actions(actions, (count, None, 2))
    one_of(order, ORDERS, "order")
    goals = checked_goals(goal_pose, count, "goal_pose")
    batch = BatchSimulation(min(count, BLOCK * threads), threads, backend)
    times = commands.shape[1] + 1
    every, n_contacts = np.empty((count, times, 5)), np.zeros((count, times), dtype=np.int64)
    for first in range(0, count, batch.num_envs):
        block = slice(first, min(first + batch.num_envs, count))
        for row, start in enumerate(starts[block]):
            batch.reset(row, start, order)
        rows = np.arange(block.stop - first)
        every[block, 0] = batch.states[rows]
        every[block, 1:], n_contacts[block, 1:] = batch.run(commands[block], rows)
    covered = batch.coverage(every[..., 2:].reshape(-1, 3), np.repeat(goals, times, axis=0))
    return Trajectories(every, covered.reshape(count, times), n_contacts)
