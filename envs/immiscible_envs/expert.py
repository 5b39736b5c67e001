"""A scripted expert that demonstrates PushT: pushes planned in closed form, executed in the simulation.

Points and directions of the plane are complex numbers x + iy [px] here, so that a turn by an angle is a product with
exp(i angle). In this file the block's frame has its origin at the centre of gravity.

One push. The block has no friction and loses its speed from one physics substep to the next, so it moves only while it
is pushed. An agent that stays at one spot r of a face, whose inward normal is n, moves it by an impulse j along n; the
spot moves along n by the depth d of the push::

    velocity  v = n j / m        turn  w = (r x n) j / I        depth  d = j (1 / m + (r x n)^2 / I)

In the block's frame v and w stay the same all along the push, so a push carries the block along an arc known in closed
form. That is the model `search` plans with; the demonstrations themselves are what the simulation makes of the actions.

One plan. The agent leaves the block, goes around it without touching it, aligns with the spot, and pushes until the
block is as near to the place it was meant to reach as this push can bring it. Then the search begins anew::

    block --search--> travel --> ready (MARGIN in front of the spot) --> push by depth d --> block --search--> ...

A disturbance is part of the action that is recorded: as in DART (Laskey et al., CoRL 2017) the demonstrations cover
the states that a learner's small mistakes lead to, and replaying them stays exact.

Shape legend: N states of the search, each (4,): x, y [px] of the block's centre of gravity, its angle [rad], and the
number of the spot where the agent stands, -1 for wherever it is now. M pushes from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import pymunk
from numpy.typing import NDArray

from immiscible_envs.geometry import BAR, CENTER_OF_GRAVITY, GOAL_POSE, STEM, Array, coverage
from immiscible_envs.pusht import SUCCESS_COVERAGE
from immiscible_envs.simulation import AGENT_RADIUS, RecordedSimulation, Simulation
from immiscible_envs.starts import AGENT_RANGE, BLOCK_RANGE

Complex = NDArray[np.complex128]

COG = complex(*CENTER_OF_GRAVITY)
INERTIA = 2.0 * pymunk.moment_for_poly(1.0, BAR.tolist())  # px^2, the block's moment over its mass

# Spots to push at, in the frame of immiscible_envs.geometry: x, y [px] on the outline, and the outward normal there.
SPOTS = np.array(
    [
        *((x, 0, 0, -1) for x in (-45, 0, 45)),  # top of the bar
        *((side * 60, 15, side, 0) for side in (-1, 1)),  # ends of the bar
        *((side * 45, 30, 0, 1) for side in (-1, 1)),  # underside of the bar
        *((side * 15, y, side, 0) for side in (-1, 1) for y in (62, 104)),  # sides of the stem
        (0, 120, 0, 1),  # end of the stem
    ],
    dtype=np.float64,
)
DEPTHS = np.array([1.5, 2.5, 3.5, 5, 7, 9.5, 12, 15, 19, 24, 30, 37, 45, 55, 67, 80, 95, 112, 132, 155])  # px

MARGIN = 12.0  # px between agent and face where the agent aligns with a spot
CLEAR = 8.0  # px, least distance between agent and block on the way around it
LEAD = 30.0  # px between agent and action on the way
PUSH_LEAD = 16.0  # px between agent and action in a push
STRIDE = 24.0  # px, most that an action may differ from the one before
TRAVEL_SPEED, PUSH_SPEED = 14.0, 7.0  # px per step, for estimates only
SETTLE = 5.0  # steps to align with a spot, for estimates only
RESOLUTION = 8  # actions are whole multiples of 1/8 px
LOOKAHEAD, WIDTH = 3, 128  # pushes in the longest sequence that is searched; sequences kept at each depth

STEPS = 250  # most that a demonstration takes
CLOSING = 5  # steps after the goal is reached: the rest of the push, then its last action held
DISTURBED = 0.5  # share of the demonstrations in which the expert is pushed off course
BUMP_HEIGHT = (12.0, 35.0)  # px, least and greatest height of what pushes it off
BUMP_LENGTH, BUMP_PAUSE = (5, 10), (15, 50)  # steps that a bump lasts, and steps before each

OUTWARD: Complex = SPOTS[:, 2] + 1j * SPOTS[:, 3]
ON_FACE: Complex = SPOTS[:, 0] + 1j * SPOTS[:, 1] - COG
TOUCHING: Complex = ON_FACE + AGENT_RADIUS * OUTWARD  # the agent's centre
READY: Complex = TOUCHING + MARGIN * OUTWARD
_LEVER: Array = (np.conj(ON_FACE) * -OUTWARD).imag  # r x n
_MOBILITY: Array = 1 + _LEVER**2 / INERTIA
SLIDE: Complex = -OUTWARD / _MOBILITY  # v / d
TURN: Array = _LEVER / INERTIA / _MOBILITY  # w / d

_BOXES = np.array([[part.min(0), part.max(0)] for part in (BAR, STEM)]) - CENTER_OF_GRAVITY
_CORNERS = (  # the outer ones: x, y, and the signs of the two outward normals
    *((-60, 0, -1, -1), (60, 0, 1, -1), (60, 30, 1, 1)),
    *((-60, 30, -1, 1), (15, 120, 1, 1), (-15, 120, -1, 1)),
)
_HULL: Complex = np.array([x + 1j * y for x, y, _, _ in _CORNERS]) - COG
_GOAL_CENTRE = complex(*GOAL_POSE[:2]) + COG * np.exp(1j * GOAL_POSE[2])
_WALLS = (8.0, 503.0)  # px, the block stays between
_REACH = (16.0, 496.0)  # px, the agent stays between


def pushed(spot: Any, depth: Any) -> tuple[Any, Any]:
    """Where pushes of spots by depths [px] carry the block: displacement (complex, px) and turn (rad), in its frame."""
    turn = TURN[spot] * depth
    mean = np.sinc(turn / (2 * np.pi)) * np.exp(0.5j * turn)  # of exp(i t) over t from 0 to turn
    return SLIDE[spot] * depth * mean, turn


def nearest_depth(displacement: Any, turn: Any) -> Array:
    """Depth of the push at each spot (..., spots) that brings the block nearest to where it should be [px].

    That is a displacement (...) in its own frame [px] and a turn (...) [rad]. Near is meant in the metric of the
    block's kinetic energy, and along the push's first direction; a depth is negative where the push leads away.
    """
    turn = np.remainder(turn + np.pi, 2 * np.pi) - np.pi
    along = (np.conj(SLIDE) * displacement[..., None]).real + INERTIA * TURN * turn[..., None]
    return along / (np.abs(SLIDE) ** 2 + INERTIA * TURN**2)


def push_aim(spot: int, depth: float) -> complex:
    """Where the agent would be had it pushed by a depth, in the block's present frame."""
    slide, turn = pushed(spot, depth)
    return complex(slide + np.exp(1j * turn) * TOUCHING[spot])


def clearance(points: Any) -> Any:
    """Distance of points of the block's frame from the block, px; negative inside it."""
    z = np.asarray(points, dtype=np.complex128)[..., None]
    dx = np.maximum(_BOXES[:, 0, 0] - z.real, z.real - _BOXES[:, 1, 0])
    dy = np.maximum(_BOXES[:, 0, 1] - z.imag, z.imag - _BOXES[:, 1, 1])
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return (outside + np.minimum(np.maximum(dx, dy), 0)).min(-1)


def beyond(points: Any, bounds: tuple[float, float]) -> Any:
    """How far points are outside a square, px; negative inside."""
    low, high = bounds
    nearest = np.minimum(points.real, points.imag)
    return np.maximum(low - nearest, np.maximum(points.real, points.imag) - high)


def passable(start: Any, end: Any) -> Any:
    """Whether the agent can go straight from each start to each end without coming near the block."""
    start, end = np.broadcast_arrays(start, end)
    along = start[..., None] + (end - start)[..., None] * np.linspace(0, 1, 33)
    return clearance(along).min(-1) >= AGENT_RADIUS + CLEAR


def _lengths(start: Any, end: Any) -> Array:
    """Length of each straight way, infinite where the block is in it."""
    return np.where(passable(start, end), np.abs(end - start), np.inf)


# Turning points of the ways around the block: three about each of its outer corners.
NODES: Complex = np.array(
    [
        x + 1j * y - COG + (AGENT_RADIUS + MARGIN) * direction
        for x, y, sx, sy in _CORNERS
        for direction in (sx, 1j * sy, (sx + 1j * sy) / math.sqrt(2))
    ]
)
_NODE_TO_NODE = _lengths(NODES[:, None], NODES)  # straight
_NODE_TO_READY = _lengths(NODES[:, None], READY)  # straight
_SHORTEST = _NODE_TO_NODE  # over other nodes (Floyd, 1962)
for _k in range(len(NODES)):
    _SHORTEST = np.minimum(_SHORTEST, _SHORTEST[:, _k, None] + _SHORTEST[None, _k])
_NODE_ON_TO_READY = (_SHORTEST[:, :, None] + _NODE_TO_READY).min(1)
_SPOT_TO_SPOT = 2 * MARGIN + np.minimum(
    _lengths(READY[:, None], READY), (_NODE_TO_READY.T[:, :, None] + _NODE_ON_TO_READY).min(1)
)


class Pose(NamedTuple):
    """Where agent and block are: agent and block's centre of gravity [px], block's angle [rad]."""

    agent: complex
    centre: complex
    angle: float

    @property
    def local_agent(self) -> complex:
        """The agent in the block's frame."""
        return self.local(self.agent)

    def local(self, point: complex) -> complex:
        """A point of the world in the block's frame."""
        return complex((point - self.centre) * np.exp(-1j * self.angle))

    def world(self, point: Any) -> Any:
        """Points of the block's frame in the world."""
        return self.centre + np.exp(1j * self.angle) * point


class Episode(RecordedSimulation):
    """A demonstration in progress, on the plain simulation."""

    def __init__(self, start: Array) -> None:
        """Begin where nothing overlaps: then the reset that a replay begins with changes nothing.

        The start (5,) is one of the published protocol; a RuntimeError if agent and block do not come to rest from it.
        """
        simulation = Simulation()
        simulation.reset(start, "position_first")
        state = simulation.state
        for _ in range(10_000):
            simulation.reset(state)
            moved, state = np.abs(simulation.state - state).max(), simulation.state
            if moved < 1e-12:
                break
        else:
            raise RuntimeError(f"the start does not come to rest: {state.tolist()}")
        super().__init__(simulation)
        self._command = state[:2]

    @property
    def pose(self) -> Pose:
        """Where agent and block are."""
        agent_x, agent_y, x, y, angle = map(float, self.state)
        return Pose(complex(agent_x, agent_y), complex(x, y) + COG * complex(np.exp(1j * angle)), angle)

    def step(self, action: Array) -> None:
        """Execute and record an action, brought within STRIDE of the one before and onto the grid."""
        change = action - self._command
        change *= min(1.0, STRIDE / max(float(np.hypot(*change)), 1e-9))
        self._command = np.round(np.clip(self._command + change, *_REACH) * RESOLUTION) / RESOLUTION
        super().step(self._command)


def search(pose: Pose, lookahead: int = LOOKAHEAD) -> Array:
    """Find the first push of the best sequence of pushes, by beam search in the model: the state (4,) it is to reach.

    A ValueError if no push is possible.
    """
    here = np.array([[pose.centre.real, pose.centre.imag, pose.angle, -1.0]])
    states, effort, first, best, least = here, np.zeros(1), np.empty((1, 4)), np.empty(0), np.inf
    for depth in range(lookahead):
        parent, states, steps = possible_pushes(states, pose)
        if not len(parent):
            break
        first = first[parent] if depth else states
        effort = effort[parent] + steps
        total = effort + remaining_steps(states)
        kept = np.argsort(total, kind="stable")[:WIDTH]
        states, effort, first = states[kept], effort[kept], first[kept]
        if total[kept[0]] < least:
            best, least = first[0], total[kept[0]]
    if not np.isfinite(least):
        raise ValueError(f"no push is possible from {pose}")
    return best


def remaining_steps(states: Array) -> Array:
    """Estimate the steps left (N,): some per px the block is off, and a push's unless it is hardly off."""
    off = np.abs(states[:, 0] + 1j * states[:, 1] - _GOAL_CENTRE)
    turned = np.abs(np.exp(1j * states[:, 2]) - np.exp(1j * GOAL_POSE[2]))
    distance = np.sqrt(off**2 + INERTIA * turned**2)
    return 1.2 * distance + 20 * np.clip((distance - 1) / 2, 0, 1)


def possible_pushes(states: Array, pose: Pose) -> tuple[NDArray[np.intp], Array, Array]:
    """Every spot pushed by several depths from states (N, 4), where walls leave the block and the agent room for it.

    Returns:
        (M,) which of the N states a push starts from, (M, 4) where it ends, and (M,) its estimated steps.
    """
    spots = np.arange(len(SPOTS))[:, None]
    centre, angle = states[:, 0] + 1j * states[:, 1], states[:, 2]
    # depths to try, (N, spots, depths): DEPTHS, and the one that brings the block nearest to the goal
    nearest = nearest_depth((_GOAL_CENTRE - centre) * np.exp(-1j * angle), GOAL_POSE[2] - angle)
    every = np.broadcast_to(DEPTHS, (*nearest.shape, len(DEPTHS)))
    depths = np.concatenate([every, nearest[..., None].clip(DEPTHS[0], DEPTHS[-1])], axis=-1)
    turned = np.exp(1j * angle)[:, None, None]
    slide, turn = pushed(spots, depths)
    # (N, spots, depths) from here on
    new_centre, new_angle = centre[:, None, None] + turned * slide, angle[:, None, None] + turn
    new_turned = turned * np.exp(1j * turn)
    before = _out_of_walls(centre[:, None, None], turned)
    possible = _out_of_walls(new_centre, new_turned) <= np.maximum(before, 0) + 0.5
    possible &= beyond(centre[:, None, None] + turned * READY[:, None], _REACH) <= 0
    possible &= beyond(new_centre + new_turned * TOUCHING[:, None], _REACH) <= 0
    travel = np.array([_SPOT_TO_SPOT[int(at)] if at >= 0 else _way_lengths(pose) for at in states[:, 3]])
    effort = SETTLE + travel[:, :, None] / TRAVEL_SPEED + depths / PUSH_SPEED
    chosen = np.nonzero(possible & np.isfinite(effort))
    end = [new_centre[chosen].real, new_centre[chosen].imag, new_angle[chosen], chosen[1].astype(np.float64)]
    return chosen[0], np.stack(end, axis=-1), effort[chosen]


def _out_of_walls(centre: Complex, turned: Complex) -> Array:
    """How far blocks reach into the walls, px; negative where they do not."""
    reach = beyond(centre + turned * _HULL[0], _WALLS)
    for corner in _HULL[1:]:
        np.maximum(reach, beyond(centre + turned * corner, _WALLS), out=reach)
    return reach


def _leave(pose: Pose) -> list[complex]:
    """Begin a way, in the block's frame: where the agent is, then off the block if it is close."""
    point = pose.local_agent
    close = AGENT_RADIUS + CLEAR + 1 - float(clearance(point))
    if close <= 0:
        return [point]
    steps = np.array([0.01, 0.01j])
    growth = clearance(point + steps) - clearance(point - steps)
    gradient = complex(growth[0], growth[1])
    away = gradient / abs(gradient) if abs(gradient) > 1e-9 else 1j
    return [point, point + (close + 1) * away]


def _way_lengths(pose: Pose) -> Array:
    """(spots,) length of the way to each spot from where the agent is, px."""
    leave = _leave(pose)
    over_nodes = (_lengths(leave[-1], NODES)[:, None] + _NODE_ON_TO_READY).min(0)
    way = np.minimum(_lengths(leave[-1], READY), over_nodes)
    return abs(leave[-1] - leave[0]) + np.minimum(way, 2000.0) + MARGIN


def way_to(spot: int, pose: Pose) -> list[complex]:
    """The way to a spot around the block: corners of a polyline in the block's frame, the agent first."""
    leave = _leave(pose)
    if passable(leave[-1], READY[spot]):
        return [*leave, READY[spot]]
    outside = np.where(beyond(pose.world(NODES), _REACH) > 0, 1000.0, 0.0)
    left, following = _NODE_TO_READY[:, spot] + outside, np.full(len(NODES), -1)
    for _ in NODES:  # Bellman and Ford: the way from each node
        over = _NODE_TO_NODE + left + outside[:, None]
        shorter = over.min(1) < left - 1e-9
        following = np.where(shorter, over.argmin(1), following)
        left = np.where(shorter, over.min(1), left)
    node, way = int((_lengths(leave[-1], NODES) + left).argmin()), leave
    while node >= 0:
        way, node = [*way, NODES[node]], int(following[node])
    return [*way, READY[spot]]


def in_front(pose: Pose, spot: int, pushing: bool) -> bool:
    """Whether to push: aligned with the spot and near it; while pushing, the agent may slip a little."""
    offset = (pose.local_agent - TOUCHING[spot]) / OUTWARD[spot]
    gap, aside = offset.real, abs(offset.imag)
    if pushing:
        return bool(gap < MARGIN + 8 and aside < 9)
    return bool(-4 < gap < MARGIN + 3 and aside < 3 + 0.35 * max(gap, 0.0))


def _ahead(way: list[complex], distance: float) -> complex:
    """The point of a polyline at a distance from its beginning, or its end."""
    for start, end in zip(way, way[1:], strict=False):
        length = abs(end - start)
        if length >= distance:
            return start + (end - start) * (distance / length)
        distance -= length
    return way[-1]


def follow(episode: Episode, target: Array) -> Iterator[Array]:
    """Actions (2,) that go to the spot of the target (4,) and push there while that brings the block nearer to it.

    Every action leads the agent, by LEAD px on the way and PUSH_LEAD px in a push, and depends on the present state.
    """
    spot, centre, angle = int(target[3]), complex(target[0], target[1]), float(target[2])
    pushing, least, stalled = False, math.inf, 0
    while True:
        pose = episode.pose
        pushing = in_front(pose, spot, pushing)
        if pushing:
            depth = float(nearest_depth(np.array(pose.local(centre)), np.array(angle - pose.angle))[spot])
            stalled = 0 if depth < least - 0.3 else stalled + 1
            least = min(least, depth)
            if depth < 0.6 or stalled > 10:
                return
            action = pose.world(push_aim(spot, min(PUSH_LEAD, depth + 0.4)))
        else:
            action = pose.world(_ahead(way_to(spot, pose), LEAD))
        yield np.array([action.real, action.imag])


def demonstrate(episode: Episode, disturbance: Array) -> bool:
    """Bring the block to the goal, searching for a new push whenever one ends; say whether the goal was reached.

    The disturbance (T, 2) [px] is added to the expert's actions; T is the most steps it may take to reach the goal.

    Raises:
        ValueError: If no push is possible, or one ends before its first step.
    """
    actions: Iterator[Array] = iter(())
    for offset in disturbance:
        action = next(actions, None)
        if action is None:
            actions = follow(episode, search(episode.pose))
            action = next(actions, None)
        if action is None:
            raise ValueError(f"a push ends before its first step, in state {episode.state.tolist()}")
        episode.step(action + offset)
        if coverage(episode.state[2:]) > SUCCESS_COVERAGE:
            break
    else:
        return False
    for _ in range(CLOSING):
        action = next(actions, action)
        episode.step(action)
    return True


def bumps(random: np.random.Generator, steps: int) -> Array:
    """Draw a disturbance (steps, 2) [px]: now and then half a sine wave, in a random direction."""
    offsets = np.zeros((steps, 2))
    start = int(random.integers(*BUMP_PAUSE, endpoint=True))
    while start < steps:
        end = start + int(random.integers(*BUMP_LENGTH, endpoint=True))
        direction = random.standard_normal(2)
        peak = random.uniform(*BUMP_HEIGHT) * direction / np.linalg.norm(direction)
        wave = np.sin(np.pi * np.arange(1, end - start + 1) / (end - start + 1))
        offsets[start:end] = (wave[:, None] * peak)[: steps - start]
        start = end + int(random.integers(*BUMP_PAUSE, endpoint=True))
    return offsets


def draw_start(random: np.random.Generator) -> Array:
    """Draw a start (5,) from the published protocol's ranges, but from all their real numbers."""
    agent, block = random.uniform(*AGENT_RANGE, 2), random.uniform(*BLOCK_RANGE, 2)
    return np.array([*agent, *block, random.uniform(-np.pi, np.pi)])


def make_episode(seed: int, index: int) -> dict[str, NDArray[Any]]:
    """Make one demonstration, a function of `seed` and `index`; a start that the expert fails from is redrawn."""
    random = np.random.default_rng([seed, index])
    while True:
        episode = Episode(draw_start(random))
        disturbance = np.zeros((STEPS, 2))
        if random.random() < DISTURBED:
            disturbance = bumps(random, STEPS)
        if demonstrate(episode, disturbance):
            return episode.arrays()


def make_episodes(episodes: int, seed: int = 0, workers: int = 1) -> Iterator[dict[str, NDArray[Any]]]:
    """Make demonstrations as `RecordedSimulation.arrays`; the number of processes changes nothing but the time."""
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if workers == 1:
        yield from map(partial(make_episode, seed), range(episodes))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(make_episode, seed), range(episodes))
