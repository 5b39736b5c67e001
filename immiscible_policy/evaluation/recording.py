"""What happened in episodes, step by step, for pictures and videos of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from immiscible_policy.evaluation.rollout import Array
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.tasks import Task, primary, success


@dataclass(frozen=True)
class Recording:
    """What happened in N episodes of at most T - 1 steps; a finished episode stays as it ended.

    Attributes:
        starts: Seeds of the starts (N,).
        scenes: The task's scenes (T, N, ...).
        scores: The primary metric so far (T, N).
        success: Whether each episode succeeded (N,).
        last: Step at which each episode ended (N,).
    """

    starts: NDArray[np.int64]
    scenes: Array
    scores: NDArray[np.float64]
    success: NDArray[np.bool_]
    last: NDArray[np.int64]


class Recorder:
    """Collects what an evaluation of a task reports after every environment step."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._scenes: list[Array] = []
        self._scores: list[Array] = []

    def on_step(self, step: int, scenes: Array, metrics: dict[str, Array], done: Array) -> None:
        """Take the scenes of all episodes after a step, as `rollout.OnStep` describes them.

        Raises ValueError if a step is missing.
        """
        if step != len(self._scenes):
            raise ValueError(f"step {step} came after {len(self._scenes)} reports; every step must be reported")
        self._scenes.append(np.array(scenes))
        self._scores.append(np.array(metrics[primary(self._task).name]))

    def recording(self, rows: Sequence[EpisodeRow]) -> Recording:
        """What was reported, each episode held from its last step on; `rows` as the evaluation returned them (N)."""
        last = np.array([row.steps for row in rows])
        held = np.minimum(np.arange(len(self._scenes))[:, None], last)  # (T, N): step whose scene is shown
        episodes = np.arange(len(rows))
        return Recording(
            starts=np.array([row.start for row in rows]),
            scenes=np.stack(self._scenes)[held, episodes],
            scores=np.stack(self._scores)[held, episodes],
            success=np.array([success(self._task, row.metrics) for row in rows]),
            last=last,
        )
