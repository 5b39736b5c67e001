"""PushT's physics for many worlds at once, without Gymnasium: for the vector environment, evaluation and data.

```python
from immiscible_envs.batch import simulate

told = simulate(states, actions)  # (N, 5) starts, (N, T, 2) commands
told.states, told.coverage, told.n_contacts  # (N, T + 1, 5), (N, T + 1), (N, T + 1)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from immiscible_envs.checks import finite, inside, one_of
from immiscible_envs.engines import make_engine
from immiscible_envs.geometry import GOAL_POSE, Array, Integers
from immiscible_envs.pusht import STATE_HIGH, STATE_LOW, checked_actions, checked_goals
from immiscible_envs.simulation import ORDERS, Order, Simulation

BLOCK = 64  # worlds that `simulate` holds at once for each thread; with many more it leaves the processor's cache


class Trajectories(NamedTuple):
    """What N worlds went through in T control steps; entry 0 in time is the start.

    Attributes:
        states: (N, T + 1, 5) agent x, y, block x, y in px, block angle in [0, 2 pi] rad.
        coverage: (N, T + 1) share of the goal that the block covers.
        n_contacts: (N, T + 1) contact points per substep of the step before, rounded up; 0 at the start.
    """

    states: Array
    coverage: Array
    n_contacts: Integers


class BatchSimulation:
    """N worlds, each a `Simulation` bit for bit, whatever the engine and the number of threads.

    A reset is that of `Simulation`, a new world; the steps are the engine's (see `immiscible_envs.engines`).
    """

    def __init__(self, num_envs: int, threads: int = 1, engine: str = "auto") -> None:
        """Build the worlds.

        Args:
            num_envs: Number of worlds, N.
            threads: Threads that share the rows; they run at once, since the compiled engine needs no Python.
            engine: "auto", "compiled" or "plain".

        Raises:
            ValueError: If a number is below 1 or the engine is unknown.
            RuntimeError: If the engine is "compiled" and cannot be used here.
        """
        for name, number in (("threads", threads), ("num_envs", num_envs)):
            if number < 1:
                raise ValueError(f"{name} {number} must be at least 1")
        self.num_envs = num_envs
        self._engine = make_engine(engine, num_envs, threads)
        self._simulations = [Simulation() for _ in range(num_envs)]
        for row, simulation in enumerate(self._simulations):
            self._engine.attach(row, simulation)
        self._states = np.array([simulation.state for simulation in self._simulations])
        self._n_contacts = np.zeros(num_envs, dtype=np.int64)

    @property
    def engine(self) -> str:
        """The engine in use, "compiled" or "plain"."""
        return self._engine.name

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
        self._engine.attach(row, simulation)
        self._states[row], self._n_contacts[row] = simulation.state, 0

    def step(self, actions: Array, rows: Integers) -> None:
        """Advance some rows (R,) by one control step towards actions (R, 2), px; used as given."""
        self.run(actions[:, None], rows)

    def run(self, actions: Array, rows: Integers) -> tuple[Array, Integers]:
        """Advance some rows (R,) by T >= 1 control steps towards actions (R, T, 2), px; used as given.

        Returns:
            states (R, T, 5) and n_contacts (R, T) after each step.
        """
        states, n_contacts = self._engine.advance(rows, actions)
        self._states[rows], self._n_contacts[rows] = states[:, -1], n_contacts[:, -1]
        return states, n_contacts

    def coverage(self, poses: Array, goals: Array) -> Array:
        """Coverage (M,) of block poses (M, 3) over goal poses (M, 3), as `geometry.coverage`."""
        return self._engine.coverage(poses, goals)


def simulate(
    states: ArrayLike,
    actions: ArrayLike,
    order: Order = "angle_first",
    goal_pose: ArrayLike = GOAL_POSE,
    threads: int = 1,
    engine: str = "auto",
) -> Trajectories:
    """Run commands open loop from given starts: what `PushTEnv` would go through, bit for bit.

    Args:
        states: (N, 5) starts: agent x, y, block x, y in px, block angle in rad.
        actions: (N, T, 2) commanded agent positions, px; those outside the workspace act as its nearest point.
        order: Which of the block's angle and position is set first, see `Simulation.reset`.
        goal_pose: (3,) or (N, 3) goals, px and rad.
        threads: Threads that share the rows.
        engine: "auto", "compiled" or "plain", see `immiscible_envs.engines`.

    Returns:
        The trajectories; nothing ends an episode here.

    Raises:
        ValueError: If a shape, a number or a name is not what this says.
        RuntimeError: If the engine is "compiled" and cannot be used here.
    """
    starts = finite(states, (None, 5), "states")
    count = len(starts)
    inside(starts[:, :4], STATE_LOW[:4], STATE_HIGH[:4], "states (positions)")
    commands = checked_actions(actions, (count, None, 2))
    one_of(order, ORDERS, "order")
    goals = checked_goals(goal_pose, count, "goal_pose")
    batch = BatchSimulation(min(count, BLOCK * threads), threads, engine)
    blocks = range(0, count, batch.num_envs)
    pieces = [_run(batch, starts[i : i + batch.num_envs], commands[i : i + batch.num_envs], order) for i in blocks]
    every, n_contacts = (np.concatenate(column) for column in zip(*pieces, strict=True))
    poses, times = every[..., 2:].reshape(-1, 3), every.shape[1]
    covered = batch.coverage(poses, np.repeat(goals, times, axis=0)).reshape(count, times)
    return Trajectories(every, covered, n_contacts)


def _run(batch: BatchSimulation, starts: Array, commands: Array, order: Order) -> tuple[Array, Integers]:
    """States (R, T + 1, 5) and n_contacts (R, T + 1) of the batch's first R rows from these starts."""
    for row, start in enumerate(starts):
        batch.reset(row, start, order)
    rows = np.arange(len(starts))
    first = batch.states[rows, None]
    later, n_contacts = batch.run(commands, rows)
    return np.concatenate([first, later], axis=1), np.pad(n_contacts, ((0, 0), (1, 0)))
