"""PushT's physics and coverage for many rows, compiled: `Simulation.step` and `coverage` without Python.

The kernels call pymunk's own C library (the very functions that pymunk calls, by their addresses) and have no
constant of the task: physics and shapes are handed in. Each does the operations of its plain form in the
same order, so that it gives the same bits; `immiscible_envs.backends` checks that before it lets anybody use them::

    row i    handles[i] = addresses of space, agent, block      counters[i] = contact points, cpArbiterGetCount
                |                                                    ^
                +-- advance: velocity of the agent, cpSpaceStep -----+-- count_contacts, called by cpSpaceStep

The arrays are NumPy's and live as long as the backend; the objects behind the addresses are those of the
`Simulation` objects that it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from pymunk._chipmunk_cffi import ffi, lib

from immiscible_envs.backends import PlainBackend
from immiscible_envs.geometry import AREA, PARTS, SIDES, Array, Integers
from immiscible_envs.simulation import DT, FRICTION, STIFFNESS, SUBSTEPS, Simulation

FUNCTIONS = ("cpSpaceStep", "cpBodyGetPosition", "cpBodyGetVelocity", "cpBodySetVelocity", "cpBodyGetAngle")
VECTOR = types.UniTuple(types.float64, 2)  # cpVect, two doubles by value
MOST_CORNERS = 20  # a rectangle clipped four times, even if rounding has dented it: 4, 6, 9, 13, 19


def _cached(decorator: Callable[..., Any], *signature: Any, **options: Any) -> Callable[..., Any]:
    """Compile with numba's cache on disk, or without one where no directory for it can be written."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return decorator(*signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            return decorator(*signature, **options)(function)

    return decorate


_kernel = _cached(njit, nogil=True, error_model="numpy")


def _c_function(returns: types.Type) -> Any:
    """A call of a C function by its address: `call(address, arguments)`, addresses being int64.

    A cpVect goes in as two doubles and comes back as a struct of two. On x86-64 (System V) and AArch64 both
    travel in floating-point registers, as C passes them.
    """
    vector = returns == VECTOR

    @intrinsic
    def call(typing_context: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            passed = cgutils.unpack_tuple(builder, values[1])
            pair = ir.LiteralStructType([ir.DoubleType()] * 2)
            result = pair if vector else context.get_value_type(returns)
            if returns == types.void:
                result = ir.VoidType()
            function = ir.FunctionType(result, [value.type for value in passed]).as_pointer()
            answer = builder.call(builder.inttoptr(values[0], function), passed)
            if vector:
                items = [builder.extract_value(answer, index) for index in range(2)]
                return context.make_tuple(builder, returns, items)
            return context.get_dummy_value() if returns == types.void else answer

        return returns(address, arguments), generate

    return call


_call = _c_function(types.void)
_call_vector = _c_function(VECTOR)
_call_number = _c_function(types.float64)
_call_integer = _c_function(types.int32)


@_cached(cfunc, types.void(types.intp, types.intp, types.CPointer(types.int64)))
def count_contacts(arbiter: int, space: int, counter: Integers) -> None:
    """Chipmunk's post-solve callback: add the pair's contact points to `counter[0]`."""
    counter[0] += _call_integer(counter[1], (arbiter,))


@_kernel
def advance(
    functions: tuple[int, ...],
    physics: tuple[int, float, float, float, float],
    handles: Integers,
    counters: Integers,
    rows: Integers,
    actions: Array,
    states: Array,
    contacts: Integers,
) -> None:
    """Step R of N simulations, the rows (R,), T times by actions (R, T, 2) [px]: `Simulation.step` and `.state`.

    The functions are the addresses of `FUNCTIONS`, the physics substeps, dt, stiffness, friction and tau, the handles
    (N, 3) the addresses of space, agent and block, the counters (N, 2) what `count_contacts` is given. States (R, T, 5)
    and contacts (R, T), the points of all substeps together, are filled in.
    """
    step, position_of, velocity_of, set_velocity, angle_of = functions
    substeps, dt, stiffness, friction, tau = physics
    for index in range(len(rows)):
        row = rows[index]
        space, agent, block = handles[row, 0], handles[row, 1], handles[row, 2]
        for now in range(actions.shape[1]):
            target_x, target_y = actions[index, now, 0], actions[index, now, 1]
            counters[row, 0] = 0
            for _ in range(substeps):
                x, y = _call_vector(position_of, (agent,))
                vx, vy = _call_vector(velocity_of, (agent,))
                vx = vx + (stiffness * (target_x - x) - friction * vx) * dt
                vy = vy + (stiffness * (target_y - y) - friction * vy) * dt
                _call(set_velocity, (agent, vx, vy))
                _call(step, (space, dt))
            state = states[index, now]
            state[0], state[1] = _call_vector(position_of, (agent,))
            state[2], state[3] = _call_vector(position_of, (block,))
            state[4] = _call_number(angle_of, (block,)) % tau
            contacts[index, now] = counters[row, 0]


@_kernel
def _clip(polygon: Array, corners: int, axis: int, sign: float, bound: float, kept: Array) -> int:
    count = 0
    start_x, start_y = polygon[corners - 1, 0], polygon[corners - 1, 1]
    start_depth = sign * (polygon[corners - 1, axis] - bound)
    for corner in range(corners):
        end_x, end_y = polygon[corner, 0], polygon[corner, 1]
        depth = sign * (polygon[corner, axis] - bound)
        if (depth < 0.0) != (start_depth < 0.0):
            share = start_depth / (start_depth - depth)
            kept[count, 0] = start_x + share * (end_x - start_x)
            kept[count, 1] = start_y + share * (end_y - start_y)
            count += 1
        if depth >= 0.0:
            kept[count, 0], kept[count, 1] = end_x, end_y
            count += 1
        start_x, start_y, start_depth = end_x, end_y, depth
    return count


@_kernel
def _area(polygon: Array, corners: int) -> float:
    origin_x, origin_y = polygon[0, 0], polygon[0, 1]
    twice, x, y = 0.0, 0.0, 0.0
    for corner in range(1, corners):
        end_x, end_y = polygon[corner, 0] - origin_x, polygon[corner, 1] - origin_y
        twice += x * end_y - end_x * y
        x, y = end_x, end_y
    return abs(twice) / 2.0


@_kernel
def _clipped_area(polygon: Array, spare: Array, sides: Array, part: int) -> float:
    corners = 4
    for side in range(4):
        axis, sign, bound = int(sides[part, side, 0]), sides[part, side, 1], sides[part, side, 2]
        corners = _clip(polygon, corners, axis, sign, bound, spare)
        if corners == 0:
            return 0.0
        polygon, spare = spare, polygon
    return _area(polygon, corners)


@_kernel
def cover(parts: Array, sides: Array, area: float, poses: Array, goals: Array, covered: Array) -> None:
    """Fill in the coverage (M,) of poses and goals (M, 3) [px, rad]: `geometry.coverage`.

    The parts (2, 4, 2) are the corners of bar and stem in the block frame, the sides (2, 4, 3) their axes, signs and
    bounds, the area [px^2] is the goal's.
    """
    moved, spare = np.empty((MOST_CORNERS, 2)), np.empty((MOST_CORNERS, 2))
    for row in range(poses.shape[0]):
        goal_angle, turn = goals[row, 2], poses[row, 2] - goals[row, 2]
        dx, dy = poses[row, 0] - goals[row, 0], poses[row, 1] - goals[row, 1]
        goal_cos, goal_sin, cos, sin = math.cos(goal_angle), math.sin(goal_angle), math.cos(turn), math.sin(turn)
        shift_x, shift_y = goal_cos * dx + goal_sin * dy, goal_cos * dy - goal_sin * dx
        overlap = 0.0
        for pair in range(4):  # bar on bar, bar on stem, stem on bar, stem on stem
            for corner in range(4):
                x, y = parts[pair // 2, corner, 0], parts[pair // 2, corner, 1]
                moved[corner, 0], moved[corner, 1] = cos * x - sin * y + shift_x, sin * x + cos * y + shift_y
            overlap += _clipped_area(moved, spare, sides, pair % 2)
        covered[row] = min(overlap / area, 1.0)


class CompiledBackend(PlainBackend):
    """The same, bit for bit, stepped by the kernels on one thread or several."""

    name = "compiled"

    def __init__(self, num_envs: int, threads: int = 1) -> None:
        """Take room for the addresses of `num_envs` simulations; each row needs an `attach` before it is stepped."""
        super().__init__()  # its simulations keep the objects behind the addresses alive
        self._handles = np.zeros((num_envs, 3), dtype=np.int64)
        self._counters = np.zeros((num_envs, 2), dtype=np.int64)
        self._counters[:, 1] = _address(ffi.addressof(lib, "cpArbiterGetCount"))
        self._functions = tuple(_address(ffi.addressof(lib, name)) for name in FUNCTIONS)
        self._physics = (SUBSTEPS, DT, STIFFNESS, FRICTION, math.tau)
        self._parts, self._sides = np.array(PARTS), np.array(SIDES, dtype=np.float64)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def attach(self, row: int, simulation: Simulation) -> None:
        """Take over a simulation that has just been reset; its contacts are counted here from now on."""
        super().attach(row, simulation)
        space = simulation.space._space
        self._handles[row] = _address(space), _address(simulation.agent._body), _address(simulation.block._body)
        handler = lib.cpSpaceAddCollisionHandler(space, 0, 0)  # the one that the simulation asked for
        handler.postSolveFunc = ffi.cast(ffi.typeof(handler.postSolveFunc), count_contacts.address)
        handler.userData = ffi.cast("void *", self._counters[row:].ctypes.data)

    def advance(self, rows: Integers, actions: Array) -> tuple[Array, Integers]:
        """`PlainBackend.advance`, bit for bit."""
        actions = np.ascontiguousarray(actions)
        states = np.empty((*actions.shape[:2], 5))
        contacts = np.empty(actions.shape[:2], dtype=np.int64)

        def work(part: slice) -> None:
            of_rows = rows[part], actions[part], states[part], contacts[part]
            advance(self._functions, self._physics, self._handles, self._counters, *of_rows)

        self._spread(work, len(rows))
        return states, -(-contacts // SUBSTEPS)  # rounded up

    def coverage(self, poses: Array, goals: Array) -> Array:
        """`PlainBackend.coverage`, bit for bit."""
        poses, goals = np.ascontiguousarray(poses), np.ascontiguousarray(goals)
        covered = np.empty(len(poses))

        def work(part: slice) -> None:
            cover(self._parts, self._sides, AREA, poses[part], goals[part], covered[part])

        self._spread(work, len(poses))
        return covered

    def _spread(self, work: Callable[[slice], None], rows: int) -> None:
        """Do the work for all rows, in slices on the threads; the kernels let other threads run meanwhile."""
        if self._pool is None:
            work(slice(0, rows))
        else:
            bounds = np.linspace(0, rows, self._threads + 1).astype(int).tolist()
            list(self._pool.map(work, map(slice, bounds[:-1], bounds[1:])))


def _address(pointer: Any) -> int:
    return int(ffi.cast("intptr_t", pointer))
