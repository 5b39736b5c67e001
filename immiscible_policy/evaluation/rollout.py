"""Rolling a policy out: the one evaluation function, for any task.

Time in an episode, with 2 observation steps and 8 action steps; the policy sees the last two observations, denoises
a chunk, and executes the part of it that begins now:

    env step        0   1   2  ...  7 | 8   9  ...
    observations  o o                 |
    chunk         . # # # # # # # # . . . . . . .
                    ^ now             | o o
                                      | . # # # ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_policy.evaluation.agent import sampling_noise
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.tasks import Metric, Observed, Task

BATCH = 50

Array = NDArray[Any]
OnStep = Callable[[int, Array, dict[str, Array], Array], None]
"""Called as on_step(step, scenes (N, ...), metrics so far, each (N,), done (N,)) after the reset and every step."""


class ActingPolicy(Protocol):
    """What can be evaluated."""

    obs: str
    obs_steps: int

    def act(self, observed: Observed, generators: Sequence[torch.Generator]) -> Array:
        """Actions to execute (B, n, A) of B episodes, in the environment's units."""
        ...


class Tally:
    """The metrics of N episodes so far: `values` (N,) by name."""

    def __init__(self, metrics: Sequence[Metric], count: int, info: Mapping[str, Array]) -> None:
        """Begin with what the reset says; only a `max` looks at it."""
        self._metrics = metrics
        self.values = {metric.name: np.zeros(count) for metric in metrics}
        for metric in metrics:
            if metric.reduce == "max":
                self.values[metric.name] = self._read(metric, np.full(count, np.nan), info)

    def update(self, reward: Array, info: Mapping[str, Array], active: NDArray[np.bool_]) -> None:
        """Count a step of the episodes that are not over."""
        for metric in self._metrics:
            so_far, now = self.values[metric.name], self._read(metric, reward, info)
            match metric.reduce:
                case "max":
                    now = np.fmax(so_far, now)
                case "any":
                    now = np.maximum(so_far, now != 0)
                case "sum":
                    now = so_far + now
            self.values[metric.name] = np.where(active, now, so_far)

    def _read(self, metric: Metric, reward: Array, info: Mapping[str, Array]) -> Array:
        """A metric (N,) now; a ValueError if it has another shape, which would be broadcast without a word."""
        now, wanted = np.array(metric.read(reward, info), np.float64), self.values[metric.name].shape
        if now.shape != wanted:
            raise ValueError(
                f"metric {metric.name} has shape {now.shape} for {wanted[0]} environments; return {wanted}"
            )
        return now


def evaluate(
    task: Task,
    policy: ActingPolicy,
    starts: Sequence[int],
    *,
    seed: int,
    checkpoint: int,
    batch_size: int = BATCH,
    max_steps: int | None = None,
    on_step: OnStep | None = None,
    options: Mapping[str, Array] | None = None,
) -> list[EpisodeRow]:
    """Roll a policy out from a list of starts.

    Each episode has its own source of sampling noise, a function of its start alone: two policies evaluated on the
    same starts meet the same noise. Batches always have `batch_size` rows (the last is filled up and the filling
    thrown away), so that a row does not depend on how many others were asked for. The rows record the training `seed`
    and the step `checkpoint`. `on_step` watches all episodes step by step. Reset `options`, a row per start, say where
    the episodes begin; `starts` then only names the episodes, and so their sampling noise.

    Returns:
        One row per start, in the order of the starts.

    Raises:
        ValueError: If there is no start, more starts to watch than one batch holds, or not a row of options per start.
    """
    if not len(starts):
        raise ValueError("starts is empty: there is nothing to evaluate")
    if on_step and len(starts) > batch_size:
        raise ValueError(f"{len(starts)} starts are more than the {batch_size} that can be watched at once")
    for key, values in (options or {}).items():
        if len(values) != len(starts):
            raise ValueError(f"{key} of shape {np.shape(values)} for {len(starts)} starts; give one row per start")
    rows: list[EpisodeRow] = []
    for first in range(0, len(starts), batch_size):
        keep = min(batch_size, len(starts) - first)
        filled = first + np.minimum(np.arange(batch_size), keep - 1)
        names = [int(starts[index]) for index in filled]
        begin = {key: values[filled] for key, values in options.items()} if options else task.reset_options(names)
        metrics, steps = _roll_out(task, policy, names, begin, keep, max_steps or task.max_steps, on_step)
        for i in range(keep):
            reduced = {name: float(values[i]) for name, values in metrics.items()}
            rows.append(EpisodeRow(checkpoint, names[i], seed, reduced, int(steps[i])))
    return rows


def _roll_out(
    task: Task,
    policy: ActingPolicy,
    starts: list[int],
    options: dict[str, Array],
    keep: int,
    max_steps: int,
    on_step: OnStep | None,
) -> tuple[dict[str, Array], Array]:
    """Metrics by name, and steps, of a batch (N,), rolled out until the first `keep` episodes are over."""
    count = len(starts)
    environment = task.make(count, policy.obs)
    generators = [sampling_noise(start) for start in starts]
    observation, info = environment.reset(seed=starts, options=options)  # type: ignore[arg-type]
    history = deque([observation] * policy.obs_steps, maxlen=policy.obs_steps)
    tally, steps, done = Tally(task.metrics, count, info), np.zeros(count, int), np.zeros(count, bool)

    def watch(step: int) -> None:
        if on_step:
            scenes = task.scenes(environment, observation, info, policy.obs)
            on_step(step, scenes[:keep], {name: so_far[:keep] for name, so_far in tally.values.items()}, done[:keep])

    watch(0)
    step = 0
    while step < max_steps and not done[:keep].all():
        actions = policy.act(task.look(history, policy.obs, keep), generators)  # (N, n, A)
        for action in actions.transpose(1, 0, 2):
            observation, reward, terminated, truncated, info = environment.step(action)
            history.append(observation)
            step += 1
            tally.update(reward, info, ~done)
            steps += ~done
            done = done | terminated | truncated | (step >= max_steps)
            watch(step)
            if done[:keep].all():
                break
    environment.close()
    return tally.values, steps
