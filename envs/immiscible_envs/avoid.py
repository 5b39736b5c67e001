"""Avoid: cross a plane past three rows of pillars without touching them; `AvoidEnv` is its specification.

A row of n pillars has n + 1 gaps, so the rows of 3, 2 and 1 pillars are crossed in 4 * 3 * 2 = 24 ways. A path that
never turns back through a row can be bent into another one without touching a pillar exactly if both go through the
same gaps: the ways are the homotopy classes, and there are no others.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from immiscible_envs import MAX_AVOID_STEPS
from immiscible_envs.checks import finite, inside, one_of
from immiscible_envs.geometry import Array
from immiscible_envs.rows import Columns, Mask, RowsVectorEnv
from immiscible_envs.shown import ShownEnv
from immiscible_envs.simulation import CONTROL_HZ, WORKSPACE

Integers = NDArray[np.int64]

AGENT_RADIUS, PILLAR_RADIUS = 8.0, 14.0
REACH = AGENT_RADIUS + PILLAR_RADIUS
"""Nearer than this [px] to the middle of a pillar, the middle of the agent touches it."""
PITCH = 96.0  # px between neighbouring pillars of a row, and between the middles of neighbouring gaps
ROWS = ((360.0, 3), (244.0, 2), (128.0, 1))  # y [px] and number of pillars, in the order in which they are crossed
FAR = 40.0  # px, the far side begins here
STRIDE = 20.0  # px, most that the agent moves in a step
MARGIN = AGENT_RADIUS  # px, so far the middle of the agent stays from the edges of the plane
START_LOW, START_HIGH = np.array([236.0, 464.0]), np.array([276.0, 480.0])
BEFORE = ROWS[0][0] + REACH
"""Episodes begin below this y [px]: no row has been crossed there, and no pillar can be touched."""
OPTIONS = ("position",)

WAYS = tuple(product(*(range(count + 1) for _, count in ROWS)))
"""Every way: the gap of each row, counted from the left. A way's number is its place in this list."""
NO_WAY = -1


def centred(count: int) -> Array:
    """Places x (count,) [px] of the pillars of a row, or of the middles of its gaps."""
    return np.asarray(WORKSPACE / 2 + PITCH * (np.arange(count) - (count - 1) / 2), dtype=np.float64)


PILLARS = np.array([(x, y) for y, count in ROWS for x in centred(count)])
"""Middles (6, 2) of the pillars [px]."""


def touched(position: Array, motion: Array) -> Array:
    """The share (N,) of straight motions (N, 2) from positions (N, 2) [px] after which a pillar is touched; inf: never.

    The nearer root t of |p + t d - c|^2 = REACH^2 for each pillar c, where the motion approaches it.
    """
    apart = position[:, None] - PILLARS  # (N, 6, 2)
    a = (motion**2).sum(-1)[:, None]
    b = (apart * motion[:, None]).sum(-1)
    discriminant = b**2 - a * ((apart**2).sum(-1) - REACH**2)
    meets = (b < 0) & (discriminant > 0)
    root = (-b - np.sqrt(np.where(meets, discriminant, 0.0))) / np.where(a > 0, a, 1.0)
    return np.where(meets & (root <= 1), np.maximum(root, 0.0), np.inf).min(1)


def crossed(gaps: Integers, before: Array, after: Array) -> Integers:
    """The gaps (N, 3) through which rows were crossed, after straight motions (N, 2) -> (N, 2) [px].

    A row that has not been crossed, or was crossed back, has the gap -1.
    """
    gaps = gaps.copy()
    for row, (y, count) in enumerate(ROWS):
        below, above = before[:, 1] >= y, after[:, 1] >= y
        drop = np.where(below != above, before[:, 1] - after[:, 1], 1.0)
        x = before[:, 0] + (before[:, 1] - y) / drop * (after[:, 0] - before[:, 0])
        through = (x[:, None] > centred(count)).sum(1)
        gaps[:, row] = np.where(below & ~above, through, np.where(above & ~below, NO_WAY, gaps[:, row]))
    return gaps


def way_number(gaps: ArrayLike) -> Integers:
    """Numbers (...) into `WAYS` of the gaps (..., 3) through which the rows were crossed; -1 if one was not."""
    gaps, number = np.asarray(gaps), np.zeros(np.shape(gaps)[:-1], np.int64)
    for row, (_, count) in enumerate(ROWS):
        number = number * (count + 1) + gaps[..., row]
    return np.where((gaps >= 0).all(-1), number, NO_WAY)


def way_taken(path: ArrayLike) -> int:
    """The way of a recorded path (L, 2) [px] from before the first row, -1 if it does not end on the far side."""
    points = np.asarray(path, dtype=np.float64)
    gaps = np.full((1, len(ROWS)), NO_WAY)
    for before, after in zip(points[:-1], points[1:], strict=True):
        gaps = crossed(gaps, before[None], after[None])
    return int(way_number(gaps)[0]) if points[-1, 1] <= FAR else NO_WAY


class Plane:
    """N agents, each on a plane of its own.

    Attributes:
        position: Middles (N, 2) [px].
        gaps: Gaps (N, 3) through which the rows were crossed, -1 where one was not.
        collision: Whether a pillar was touched (N,); the agent stays there.
    """

    def __init__(self, count: int) -> None:
        self.position = np.tile((START_LOW + START_HIGH) / 2, (count, 1))
        self.gaps = np.full((count, len(ROWS)), NO_WAY)
        self.collision = np.zeros(count, np.bool_)

    def place(self, row: int, position: Array) -> None:
        """Begin an episode at a position (2,) [px]: a pure function of it."""
        self.position[row], self.gaps[row], self.collision[row] = position, NO_WAY, False

    def advance(self, targets: Array, rows: NDArray[np.intp]) -> None:
        """Move the agents `rows` (R,) straight towards their targets (R, 2) [px], until one touches a pillar."""
        before = self.position[rows]
        way = np.clip(targets, MARGIN, WORKSPACE - MARGIN) - before
        length = np.sqrt((way**2).sum(-1))
        motion = way * np.minimum(1.0, STRIDE / np.maximum(length, STRIDE))[:, None]
        motion[self.collision[rows]] = 0.0
        touch = touched(before, motion)
        after = before + np.minimum(touch, 1.0)[:, None] * motion
        self.position[rows], self.gaps[rows] = after, crossed(self.gaps[rows], before, after)
        self.collision[rows] |= touch <= 1

    def info(self) -> dict[str, Any]:
        """What `AvoidEnv` tells, each (N,)."""
        success = (self.position[:, 1] <= FAR) & ~self.collision
        way = np.where(success, way_number(self.gaps), NO_WAY)
        return {"collision": self.collision.copy(), "is_success": success, "way": way}


class AvoidEnv(ShownEnv[Array]):
    """Cross a plane past three rows of pillars without touching them, in one of 24 equally good ways.

    In the spirit of the avoiding task of D3IL (Jia et al., ICLR 2024), with geometry and numbers of its own.

    ## Description
    The plane is a square of 512 x 512 px seen from above, x to the right, y down. The agent is a disc of radius 8.
    Three rows of pillars, discs of radius 14, stand between it and the far side, the strip y <= 40:

    | Row | y   | Pillars at x  | Gaps, middles at x     |
    |-----|-----|---------------|------------------------|
    | 1   | 360 | 160, 256, 352 | 112, 208, 304, 400     |
    | 2   | 244 | 208, 304      | 160, 256, 352          |
    | 3   | 128 | 256           | 208, 304               |

    The outermost gaps reach to the edge of the plane. Every gap of a row can be reached from every gap of the row
    before, so there are 4 * 3 * 2 = 24 ways (`immiscible_envs.avoid.WAYS`). In a gap the agent has 26 px to either
    side. One step takes 0.1 s.

    ## Action space
    `Box(0, 512, (2,), float64)`: the position that the agent moves to, in px. It goes straight there, at most 20 px in
    a step, and its middle stays 8 px inside the edges, which may be touched. A finite command outside the box acts as
    the nearest one inside it.

    ## Observation space
    `Box(0, 512, (2,), float64)`: the position x, y of the middle of the agent, in px. Nothing else changes.

    ## Reward
    1 for a step that ends on the far side, otherwise 0.

    ## Starting state
    Without options: x uniform in 236..276, y uniform in 464..480, drawn from the generator that `seed` seeds. A reset
    is a pure function of the start.

    ## Episode end
    *Terminated* when the agent has reached the far side, or touches a pillar: there it stays. Contact is computed
    along the whole motion, not at its end alone. *Truncated* after 150 steps (by `gymnasium.make`).

    ## Information
    `reset` and `step` return: `collision` (bool, a pillar was touched), `is_success` (bool, the far side was reached
    without), `way` (int, the number of the way through which it was reached, -1 before). A row that is crossed back and
    again counts as it was crossed last.

    ## Arguments
    ```python
    env = gymnasium.make("immiscible/Avoid-v0", render_mode="rgb_array")
    ```

    | Argument      | Default | Meaning                                                     |
    |---------------|---------|-------------------------------------------------------------|
    | `render_mode` | `None`  | `"rgb_array"` (512 x 512 x 3 uint8) or `"human"` (a window) |

    ## Reset options
    `position`, (2,): where to begin, with 8 <= x <= 504 and 382 <= y <= 504: below the first row, touching nothing.

    ## Version history
    * v0: first version.
    """

    title = "Avoid"

    def __init__(self, render_mode: str | None = None) -> None:
        """Build the environment; a ValueError if the render mode is unknown."""
        super().__init__(render_mode)
        self.observation_space: spaces.Space[Any] = plane_space()
        self.action_space: spaces.Space[Any] = plane_space()
        self._plane = Plane(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; see the class for the start and the option.

        Raises ValueError if an option is unknown or its value is not what the class says.
        """
        super().reset(seed=seed)
        for key in options or {}:
            one_of(key, OPTIONS, "reset option")
        self._plane.place(0, choose_start(options or {}, self.np_random))
        return self._present()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move for 0.1 s towards the action (2,), px.

        Raises ValueError if the action is not two finite numbers.
        """
        self._plane.advance(finite(action, (2,), "action")[None], np.arange(1))
        observation, info = self._present()
        over = info["is_success"] or info["collision"]
        return observation, float(info["is_success"]), over, False, info

    def _present(self) -> tuple[Array, dict[str, Any]]:
        self.show()
        info = {key: values[0].item() for key, values in self._plane.info().items()}
        return self._plane.position[0].copy(), info

    def picture(self) -> Any:
        """The plane."""
        from immiscible_envs.rendering import CANVAS, render_plane

        return render_plane(self._plane.position[0], CANVAS)


class AvoidVectorEnv(RowsVectorEnv[Array]):
    """A batch of `AvoidEnv`: each row is that environment, bit for bit, and its specification holds here.

    ```python
    env = gymnasium.make_vec("immiscible/Avoid-v0", num_envs=50, vectorization_mode="vector_entry_point")
    observations, infos = env.reset(seed=list(range(50)))
    ```

    Arguments are `num_envs`, `render_mode` (None or "rgb_array"), `max_episode_steps` (150) and `autoreset_mode`
    (`NEXT_STEP`). `RowsVectorEnv` describes seeds, `reset_mask` and the modes of autoreset. The option `position` is
    (N, 2).
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_HZ,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        max_episode_steps: int = MAX_AVOID_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Build the rows; a ValueError for what the class excludes."""
        super().__init__(num_envs, plane_space(), plane_space(), render_mode, max_episode_steps, autoreset_mode)
        self._plane = Plane(num_envs)

    def render(self) -> tuple[Any, ...] | None:
        """One (512, 512, 3) uint8 picture per row, in render mode "rgb_array"."""
        from immiscible_envs.rendering import CANVAS, render_plane

        if self.render_mode is None:
            return None
        return tuple(render_plane(position, CANVAS) for position in self._plane.position)

    def _split(self, options: dict[str, Any]) -> Columns:
        for key in options:
            one_of(key, (*OPTIONS, "reset_mask"), "reset option")
        shape = (self.num_envs, 2)
        return {key: finite(values, shape, f"option {key}") for key, values in options.items()}

    def _choose(self, options: dict[str, Any], random: np.random.Generator) -> Array:
        return choose_start(options, random)

    def _place(self, row: int, start: Array) -> None:
        self._plane.place(row, start)

    def _advance(self, actions: Array, going: NDArray[np.intp]) -> None:
        self._plane.advance(finite(actions, (self.num_envs, 2), "action")[going], going)

    def _present(self) -> tuple[Array, dict[str, Any]]:
        return self._plane.position.copy(), self._masks(self._plane.info())

    def _score(self, infos: dict[str, Any]) -> tuple[Array, Mask]:
        return infos["is_success"].astype(np.float64), infos["is_success"] | infos["collision"]


def plane_space() -> spaces.Box:
    """Positions on the plane: what is observed, and what is commanded."""
    return spaces.Box(0.0, WORKSPACE, (2,), np.float64)


def choose_start(options: dict[str, Any], random: np.random.Generator) -> Array:
    """The position (2,) that the reset options name, or one that is drawn.

    Raises ValueError if it is not one to begin at.
    """
    if "position" not in options:
        return random.uniform(START_LOW, START_HIGH)
    position = finite(options["position"], (2,), "option position")
    return inside(position, np.array([MARGIN, BEFORE]), np.full(2, WORKSPACE - MARGIN), "option position")
