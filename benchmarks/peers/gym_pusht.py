"""gym-pusht: its environment step and its coverage through shapely (runs in `.venv-peers`)."""

from __future__ import annotations

import time
from typing import Any

import gym_pusht  # noqa: F401  registers the environment
import gymnasium
import numpy as np
from gym_pusht.envs.pusht import pymunk_to_shapely

from benchmarks.peers.serve import serve, versions


class GymPushT:
    """One environment with the state as observation; a second copy of its block is placed by hand for coverage."""

    def build(self, *, starts: list[list[float]], actions: list[list[list[float]]]) -> dict[str, Any]:
        """Make the environment.

        Args:
            starts: Start states (N, 5) as this environment reads them: the block's position is set before its angle.
            actions: Commanded positions (N, T, 2) of the agent, px; T is at most 300.
        """
        self.starts, self.actions = np.array(starts), np.array(actions)
        self.environment = gymnasium.make("gym_pusht/PushT-v0", obs_type="state", disable_env_checker=True)
        return {"versions": versions(("gym-pusht", "pymunk", "shapely", "gymnasium"))}

    def step(self, *, episodes: int) -> float:
        """Seconds per environment step over the first episodes, their resets included."""
        start = time.perf_counter()
        for state, actions in zip(self.starts[:episodes], self.actions, strict=False):
            self.environment.reset(options={"reset_to_state": state})
            for action in actions:
                self.environment.step(action)
        return (time.perf_counter() - start) / (episodes * self.actions.shape[1])

    def states(self, *, episodes: int) -> list[list[list[float]]]:
        """States (N, T, 5) of the first episodes: agent x, y, block x, y and angle after every step."""
        result = []
        for state, actions in zip(self.starts[:episodes], self.actions, strict=False):
            self.environment.reset(options={"reset_to_state": state})
            result.append([self.environment.step(action)[0].tolist() for action in actions])
        return result

    def coverage(self, *, poses: list[list[float]], calls: int) -> dict[str, Any]:
        """Coverage of block poses (P, 3) as the environment computes it, and seconds per call."""
        environment: Any = self.environment.unwrapped
        goal = environment.get_goal_pose_body(environment.goal_pose)
        block = environment.get_goal_pose_body(np.zeros(3))  # placed by angle and position, in any order

        def covered(pose: list[float]) -> float:
            block.position, block.angle = pose[:2], pose[2]
            there = pymunk_to_shapely(goal, environment.block.shapes)
            here = pymunk_to_shapely(block, environment.block.shapes)
            return there.intersection(here).area / there.area

        values = [covered(pose) for pose in poses]
        start = time.perf_counter()
        for _ in range(calls):
            for pose in poses:
                covered(pose)
        return {"values": values, "seconds": (time.perf_counter() - start) / (calls * len(poses))}


if __name__ == "__main__":
    serve(GymPushT())
