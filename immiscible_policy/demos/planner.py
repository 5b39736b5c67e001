"""A demonstrator for manipulation tasks: it looks a few plans ahead, follows the first one, and looks again.

The planner knows nothing of the task. A task says which plans there are, where each is expected to lead and
what is left to do from there (a rough model is enough), and how to follow a plan step by step. `search`
looks through the sequences of plans with a beam; `demonstrate` follows the best one, pushed off course now
and then, so that the recordings also show how to recover::

    state --search--> plan --follow--> action + disturbance --step--> ... when the plan ends, search again

The disturbance is part of the action that is recorded: as in DART (Laskey et al., CoRL 2017) the
demonstrations cover the states that a learner's small mistakes lead to, and replaying them stays exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expansion:
    """Every plan that can be made from each of N states, M in all.

    Attributes:
        parent: (M,) which of the N states a plan starts from.
        plan: (M, P) the plans, in the task's own terms.
        state: (M, S) where each plan is expected to end.
        effort: (M,) what each plan costs, in steps.
    """

    parent: NDArray[np.intp]
    plan: Array
    state: Array
    effort: Array


class Task(Protocol):
    """What the planner asks of a task. A state is S numbers and a plan P numbers, in the task's own terms."""

    def observe(self) -> Array:
        """The live system's state, (S,)."""

    def expand(self, states: Array) -> Expansion:
        """Every plan from each of the states (N, S)."""

    def remaining(self, states: Array) -> Array:
        """(N,) steps still needed from each of the states (N, S), estimated."""

    def follow(self, plan: Array) -> Iterator[Array]:
        """Actions (A,) that carry out a plan, each from the live system's state; ends with the plan."""

    def step(self, action: Array) -> None:
        """Act on the live system for one step."""

    def done(self) -> bool:
        """Whether the live system is at its goal."""


def search(task: Task, depth: int = 3, width: int = 128) -> Array:
    """Find the first plan of the best sequence of plans from the live system's state, by beam search.

    Args:
        task: The task.
        depth: Plans in the longest sequence that is looked at.
        width: Sequences kept from each depth to the next.

    Returns:
        (P,) the plan to follow now.

    Raises:
        ValueError: If the task has no plan to offer.
    """
    states, effort = task.observe()[None], np.zeros(1)
    first, best, least = np.empty((1, 0)), np.empty(0), np.inf
    for level in range(depth):
        grown = task.expand(states)
        if not len(grown.parent):
            break
        first = first[grown.parent] if level else grown.plan
        effort = effort[grown.parent] + grown.effort
        total = effort + task.remaining(grown.state)
        kept = np.argsort(total, kind="stable")[:width]
        states, effort, first = grown.state[kept], effort[kept], first[kept]
        if total[kept[0]] < least:
            best, least = first[0], total[kept[0]]
    if not np.isfinite(least):
        raise ValueError(f"the task offers no plan from state {task.observe().tolist()}")
    return best


def demonstrate(task: Task, disturbance: Array, closing: int = 5) -> bool:
    """Bring a task to its goal, searching for a new plan whenever one ends.

    Args:
        task: The task at its start; it keeps its own record of what happens to it.
        disturbance: (T, A) added to the expert's actions; T is the most steps it may take to reach the goal.
        closing: Steps after the goal is reached: the rest of the last plan, then its last action held.

    Returns:
        Whether the goal was reached.

    Raises:
        ValueError: If a plan ends before its first step.
    """
    actions: Iterator[Array] = iter(())
    for offset in disturbance:
        action = next(actions, None)
        if action is None:
            actions = task.follow(search(task))
            action = next(actions, None)
        if action is None:
            raise ValueError(f"a plan ends before its first step, in state {task.observe().tolist()}")
        task.step(action + offset)
        if task.done():
            break
    else:
        return False
    for _ in range(closing):
        action = next(actions, action)
        task.step(action)
    return True


def bumps(
    random: np.random.Generator,
    steps: int,
    dimensions: int,
    *,
    height: tuple[float, float],
    length: tuple[int, int] = (5, 10),
    pause: tuple[int, int] = (15, 50),
) -> Array:
    """Draw a disturbance for `demonstrate`: now and then half a sine wave, in a random direction.

    Args:
        random: Source of the randomness.
        steps: Steps to cover.
        dimensions: Numbers in an action.
        height: Least and greatest height of a bump, in the unit of the actions.
        length: Least and greatest length of a bump, in steps.
        pause: Least and greatest number of steps before each bump.

    Returns:
        (steps, dimensions) offsets.
    """
    offsets = np.zeros((steps, dimensions))
    start = int(random.integers(*pause, endpoint=True))
    while start < steps:
        end = start + int(random.integers(*length, endpoint=True))
        direction = random.standard_normal(dimensions)
        peak = random.uniform(*height) * direction / np.linalg.norm(direction)
        wave = np.sin(np.pi * np.arange(1, end - start + 1) / (end - start + 1))
        offsets[start:end] = (wave[:, None] * peak)[: steps - start]
        start = end + int(random.integers(*pause, endpoint=True))
    return offsets
