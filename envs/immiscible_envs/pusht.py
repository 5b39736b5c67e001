"""PushT for one agent and one block, as a Gymnasium environment; `PushTEnv` is its specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from immiscible_envs.checks import finite, inside, one_of
from immiscible_envs.geometry import GOAL_POSE, Array, coverage, keypoints
from immiscible_envs.shown import ShownEnv
from immiscible_envs.simulation import WORKSPACE, Order, Simulation
from immiscible_envs.starts import AGENT_RANGE, BLOCK_RANGE, legacy_starts

Observation = Array | dict[str, Any]

SUCCESS_COVERAGE = 0.95
IMAGE_SIZE = 96
OBS_TYPES = ("state", "keypoints", "image")
OPTIONS = ("state", "legacy_seed", "goal_pose")
AGENT_LOW, AGENT_HIGH = np.zeros(2), np.full(2, WORKSPACE)
# A block pressed hard enough leaves through a wall, but no farther than the agent inside reaches.
BLOCK_LOW, BLOCK_HIGH = -WORKSPACE, 2 * WORKSPACE
STATE_LOW = np.array([0.0, 0.0, BLOCK_LOW, BLOCK_LOW, 0.0])
STATE_HIGH = np.array([WORKSPACE, WORKSPACE, BLOCK_HIGH, BLOCK_HIGH, 2 * np.pi])


class PushTEnv(ShownEnv[Observation]):
    """Push a T-shaped block onto its goal with a round agent (PushT; Chi et al., Diffusion Policy, RSS 2023).

    ## Description
    The workspace is a square of 512 x 512 px seen from above, x to the right, y down. The agent is a disc
    that follows commanded positions like a mass on a damped spring; the block slides without inertia (all
    velocities of the block fade at once) and only moves while it is pushed. The block is to cover the goal, a
    T of the same shape. One step takes 0.1 s: ten physics substeps of 0.01 s.

    ## Action space
    `Box(0, 512, (2,), float64)`: the position that the agent is drawn to, in px. A finite command outside the
    box acts as the nearest one inside it.

    ## Observation space
    `obs_type="state"`: `Box((5,), float64)`

    | Num | Observation           | Min  | Max  | Unit |
    |-----|-----------------------|------|------|------|
    | 0   | agent x               | 0    | 512  | px   |
    | 1   | agent y               | 0    | 512  | px   |
    | 2   | block x               | -512 | 1024 | px   |
    | 3   | block y               | -512 | 1024 | px   |
    | 4   | block angle           | 0    | 2 pi | rad  |

    Block x and y are the origin of the block's frame, the middle of the top of the T. Inside the walls it
    stays within 0..512; the box is wider because a block that is pressed against a wall may slip through.

    `obs_type="keypoints"`: `Box((20,), float64)`

    | Num    | Observation                                              | Min  | Max  | Unit |
    |--------|----------------------------------------------------------|------|------|------|
    | 0..17  | nine keypoints of the block: x0, y0, x1, y1, ... x8, y8  | -512 | 1024 | px   |
    | 18, 19 | agent x, y                                               | 0    | 512  | px   |

    `obs_type="image"`: `Dict`

    | Key         | Space                                | Meaning                       |
    |-------------|--------------------------------------|-------------------------------|
    | `image`     | `Box(0, 255, (96, 96, 3), uint8)`    | picture of the workspace, RGB |
    | `agent_pos` | `Box(0, 512, (2,), float64)`         | agent x, y in px              |

    ## Reward
    `clip(coverage / 0.95, 0, 1)`, where coverage = area(block and goal) / area(goal).

    ## Starting state
    Without options: agent x, y uniform over the integers 50..449, block x, y uniform over 100..399, block
    angle 2 pi z - pi with z standard normal, all drawn from the generator that `seed` seeds. The block may
    start touching or overlapping the agent; the physics then parts them. After a start is set, the physics
    advances by one substep. A reset is a pure function of the start: nothing of the episode before survives.

    ## Episode end
    *Terminated* when coverage exceeds 0.95. *Truncated* after 300 steps (by `gymnasium.make`).

    ## Information
    `reset` and `step` return: `coverage` (float), `is_success` (bool, coverage > 0.95), `n_contacts` (int,
    contact points per substep of the last step, rounded up; 0 after a reset), `block_pose` and `goal_pose`
    ((3,) float64: x, y, angle).

    ## Arguments
    ```python
    env = gymnasium.make("immiscible/PushT-v0", obs_type="keypoints", render_mode="rgb_array")
    ```

    | Argument      | Default             | Meaning                                                     |
    |---------------|---------------------|-------------------------------------------------------------|
    | `obs_type`    | `"state"`           | `"state"`, `"keypoints"` or `"image"`                       |
    | `goal_pose`   | `(256, 256, pi/4)`  | x, y in 0..512 px and angle in rad                          |
    | `render_mode` | `None`              | `"rgb_array"` (512 x 512 x 3 uint8) or `"human"` (a window) |

    ## Reset options
    `reset(options={...})` takes these keys and no others:

    | Key           | Meaning                                                                            |
    |---------------|------------------------------------------------------------------------------------|
    | `state`       | (5,) the state to start in: agent x, y, block x, y, block angle                    |
    | `legacy_seed` | a seed of the published protocol, as 100000..100049 (its tests); not with `state`  |
    | `goal_pose`   | (3,) the goal of this episode only                                                 |

    `state` sets the block's angle first and then its position, so the block lies where the state says.
    `legacy_seed` follows the published protocol, position first (see `immiscible_envs.starts`).

    ## Version history
    * v0: first version.
    """

    title = "PushT"

    def __init__(
        self,
        obs_type: str = "state",
        goal_pose: Sequence[float] | Array = GOAL_POSE,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; a ValueError if an argument is not one of those that the class lists."""
        super().__init__(render_mode)
        self.obs_type = one_of(obs_type, OBS_TYPES, "obs_type")
        self.observation_space: spaces.Space[Any] = observation_space(obs_type)
        self.action_space: spaces.Space[Any] = action_space()
        self._default_goal = checked_goal(goal_pose)
        self._goal = self._default_goal
        self._simulation = Simulation()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see the class for the start and the options.

        Raises ValueError if an option is unknown or its value is not what the class says.
        """
        super().reset(seed=seed)
        start = choose_start(options or {}, self.np_random, self._default_goal)
        self._goal = start.goal_pose
        self._simulation.reset(start.arguments, start.order)
        return self._present(self._simulation.state)

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance by 0.1 s with the agent drawn towards the action (2,), px.

        Raises ValueError if the action is not two finite numbers.
        """
        self._simulation.step(checked_actions(action, (2,)))
        observation, info = self._present(self._simulation.state)
        reward = min(max(info["coverage"] / SUCCESS_COVERAGE, 0.0), 1.0)
        return observation, reward, info["is_success"], False, info

    def _present(self, state: Array) -> tuple[Observation, dict[str, Any]]:
        self.show()
        covered = coverage(state[2:], self._goal)
        info = {
            "coverage": covered,
            "is_success": covered > SUCCESS_COVERAGE,
            "n_contacts": self._simulation.n_contacts,
            "block_pose": state[2:].copy(),
            "goal_pose": self._goal.copy(),
        }
        return observe(state, self.obs_type, self._goal), info

    def picture(self) -> Any:
        """The workspace."""
        from immiscible_envs.rendering import CANVAS, render_state

        return render_state(self._simulation.state, self._goal, CANVAS)


class Start(NamedTuple):
    """One episode's beginning: what `Simulation.reset` is given, (5,) and an order, and the goal (3,)."""

    arguments: Array
    order: Order
    goal_pose: Array


def choose_start(options: Mapping[str, Any], random: np.random.Generator, default_goal: Array) -> Start:
    """Read one episode's reset options, or draw a start where they name none.

    Raises ValueError if a key is unknown, a value is not what `PushTEnv` says, or two starts are given.
    """
    for key in options:
        one_of(key, OPTIONS, "reset option")
    if "state" in options and "legacy_seed" in options:
        raise ValueError("reset options state and legacy_seed both name a start; give one of them")
    goal = checked_goal(options["goal_pose"]) if "goal_pose" in options else default_goal
    if "state" in options:
        state = finite(options["state"], (5,), "option state")
        inside(state[:4], STATE_LOW[:4], STATE_HIGH[:4], "option state (positions)")
        return Start(state, "angle_first", goal)
    if "legacy_seed" in options:
        return Start(legacy_starts([options["legacy_seed"]])[0], "position_first", goal)
    return Start(random_start(random), "angle_first", goal)


def random_start(random: np.random.Generator) -> Array:
    """Draw a start (5,) with the published distribution: agent x, y, block x, y in px, angle in rad."""
    agent, block = random.integers(*AGENT_RANGE, size=2), random.integers(*BLOCK_RANGE, size=2)
    return np.array([*agent, *block, random.standard_normal() * 2 * np.pi - np.pi], dtype=np.float64)


def checked_goal(goal_pose: Any) -> Array:
    """Read a goal pose (3,) whose position lies in the workspace."""
    values = finite(goal_pose, (3,), "goal_pose")
    inside(values[:2], 0.0, WORKSPACE, "goal_pose (position)")
    return values


def checked_goals(goal_pose: Any, count: int, name: str) -> Array:
    """Read one goal pose (3,) for all rows or one for each (N, 3), positions in the workspace, as (N, 3)."""
    one_for_all = np.ndim(goal_pose) == 1
    goals = np.empty((count, 3))
    goals[:] = finite(goal_pose, (3,) if one_for_all else (count, 3), name)
    inside(goals[:, :2], 0.0, WORKSPACE, f"{name} (position)")
    return goals


def checked_actions(action: Any, shape: tuple[int | None, ...]) -> Array:
    """Read finite commands of a shape and move those outside the workspace to its edge."""
    return np.clip(finite(action, shape, "action"), 0.0, WORKSPACE)


def observe(state: Array, obs_type: str, goal_pose: Array) -> Observation:
    """What the agent sees of a state (5,) and goal (3,), or of states (N, 5) and goals (N, 3): see `PushTEnv`."""
    if obs_type == "state":
        return state
    if obs_type == "keypoints":
        points = keypoints(state[..., 2:])
        return np.concatenate([points.reshape(*state.shape[:-1], 18), state[..., :2]], axis=-1)
    from immiscible_envs.rendering import render_state

    if state.ndim == 1:
        return {"image": render_state(state, goal_pose, IMAGE_SIZE), "agent_pos": state[:2].copy()}
    images = [render_state(one, goal, IMAGE_SIZE) for one, goal in zip(state, goal_pose, strict=True)]
    return {"image": np.stack(images), "agent_pos": state[:, :2].copy()}


def observation_space(obs_type: str) -> spaces.Space[Any]:
    """The space of `observe`."""
    agent = spaces.Box(AGENT_LOW, AGENT_HIGH, dtype=np.float64)
    if obs_type == "state":
        return spaces.Box(STATE_LOW, STATE_HIGH, dtype=np.float64)
    if obs_type == "keypoints":
        low, high = np.full(18, BLOCK_LOW), np.full(18, BLOCK_HIGH)
        return spaces.Box(np.append(low, AGENT_LOW), np.append(high, AGENT_HIGH), dtype=np.float64)
    image = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return spaces.Dict({"image": image, "agent_pos": agent})


def action_space() -> spaces.Box:
    """Positions in the workspace (2,), px."""
    return spaces.Box(AGENT_LOW, AGENT_HIGH, dtype=np.float64)
