"""What a demonstration records of its steps, whoever demonstrates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from immiscible_envs.geometry import Array, keypoints
from immiscible_envs.simulation import Simulation


class Recording:
    """Steps a simulation and records every step."""

    def __init__(self, simulation: Simulation) -> None:
        """Begin in the simulation's present state."""
        self.simulation = simulation
        self.states: list[Array] = []
        self.actions: list[Array] = []
        self.n_contacts: list[int] = []

    def step(self, action: Array) -> None:
        """Advance by one control step towards the action (2,), px, and record it."""
        self.states.append(self.simulation.state)
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
