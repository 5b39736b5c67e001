"""One step of a task before a training: a mistake in somebody's task is one line at once, not a traceback later."""

from __future__ import annotations

import math
import traceback
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.evaluation.rollout import Tally
from immiscible_policy.policy import PolicySpec
from immiscible_policy.tasks import Task

COUNT = 2
"""Environments side by side: what mixes up a number of one environment with an array over all fails with two."""


def try_task(task: Task, spec: PolicySpec, action: NDArray[np.float32]) -> None:
    """Do what an evaluation does, with two starts and for one step: make, reset, look, step, read the metrics.

    Args:
        task: With an environment.
        spec: What the policy is built from, with the sizes that the demonstrations have.
        action: A recorded action (A,).

    Raises:
        CommandError: If a part of the task fails, with its place; if it sees or takes other sizes than the
            demonstrations have; or if a metric is not a finite number per environment. One line.
    """
    obs, steps = spec.obs, spec.obs_steps
    cameras = spec.encoder.cameras if spec.encoder else ()
    try:
        starts, environment = task.starts("legacy", COUNT), task.make(COUNT, obs)
        try:
            taken = math.prod(environment.single_action_space.shape or ())
            if taken != len(action):
                sizes = f"{taken} numbers per action, the demonstrations have {len(action)}"
                _refuse(task, f"its environment takes {sizes}")
            observation, info = environment.reset(seed=starts, options=task.reset_options(starts))  # type: ignore[arg-type]
            seen, tally = task.look([observation] * steps, obs, COUNT), Tally(task.metrics, COUNT, info)
            if seen.numbers.shape != (COUNT, steps, spec.obs_dim):
                shape = f"numbers {seen.numbers.shape}, the demonstrations give {(COUNT, steps, spec.obs_dim)}"
                _refuse(task, f"of {COUNT} environments and {steps} steps, obs={obs} sees {shape}")
            if set(seen.frames) != set(cameras):
                _refuse(task, f"obs={obs} sees the cameras {sorted(seen.frames)}, the demonstrations {sorted(cameras)}")
            _, reward, _, _, info = environment.step(np.stack([action] * COUNT))
            tally.update(reward, info, np.ones(COUNT, bool))
        finally:
            environment.close()
        figures = tally.values | {metric.name: np.array(metric.read(tally.values)) for metric in task.set_metrics}
    except CommandError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {one_line(error)} ({Path(place.filename).name}, line {place.lineno})"
        raise CommandError(f"task={task.name} fails in a trial of one step: {what}") from error
    for name, values in figures.items():
        if not np.isfinite(values).all():
            _refuse(task, f"after one step its metric {name} is {values}; return finite numbers")


def _refuse(task: Task, why: str) -> None:
    raise CommandError(f"task={task.name}: {why}")
