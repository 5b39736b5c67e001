"""Finished runs as the laboratory takes them: their newest checkpoints, their selectors, and windows to measure on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import Agent, read_policy, read_spec
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.image.build import load_image_model
from immiscible_policy.lab.data import demonstrated
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.palette import COLOURS
from immiscible_policy.randomness import torch_generator
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.tasks import Task, primary, recorded_task

RUNS = Option(
    named_runs, None, "runs of train_policy.py, DIR,DIR or NAME=DIR,...; the others are compared with the first"
)
IMAGE_RUNS = Option(named_runs, None, "runs of train_image.py, DIR,DIR or NAME=DIR,...; the first seed of each")

Newest = dict[str, dict[int, Checkpoint]]  # The newest checkpoint of every training seed of each run, by the run's name


def newest_policies(runs: Mapping[str, RunDirectory] | None, *, pictures: bool = False) -> Newest:
    """The policies of `runs=`, all of which can be loaded; CommandError if one sees pictures and must not."""
    result = _newest("runs", runs, read_policy)
    for run, seeds in result.items():
        if not pictures and any(read_spec(checkpoint).encoder for checkpoint in seeds.values()):
            raise CommandError(f"runs= names {run}, which sees pictures; this program takes policies of numbers alone")
    return result


def newest_image_models(runs: Mapping[str, RunDirectory] | None) -> dict[str, Checkpoint]:
    """The image models of `image_runs=`, the first seed of each run."""
    return {run: next(iter(seeds.values())) for run, seeds in _newest("image_runs", runs, load_image_model).items()}


def _newest(key: str, runs: Mapping[str, RunDirectory] | None, load: Callable[[Checkpoint], Any]) -> Newest:
    """The newest checkpoints of the runs that an option names, each of which can be loaded."""
    result: Newest = {}
    for name, run in (runs or {}).items():
        run.require_own_seeds()
        kept = {seed: c for seed in run.seeds() if (c := run.seed(seed).newest()) is not None}
        if not kept:
            raise CommandError(f"{key}={run.path}: no checkpoint there; train it first")
        for checkpoint in kept.values():
            load(checkpoint)  # a damaged one is noticed before the others are measured
        result[name] = kept
    if len(result) > len(COLOURS):
        raise CommandError(f"{key}= names {len(result)} runs; one picture fits at most {len(COLOURS)}")
    return result


def task_of(checkpoint: Checkpoint) -> Task:
    """The task that a checkpoint was trained for; the default one where it names none."""
    return recorded_task(checkpoint.metadata.get("config", {}))


def rolled_out(
    checkpoint: Checkpoint, agent: Agent, starts: Sequence[int], seed: int = 0, **options: Any
) -> NDArray[np.float64]:
    """Scores (starts,), the task's primary metric, of a checkpoint's agent; further options are those of `evaluate`."""
    task = task_of(checkpoint)
    rows = evaluate(task, agent, starts, seed=seed, checkpoint=checkpoint.step, **options)
    return np.array([row.metrics[primary(task).name] for row in rows])


def own_selector(checkpoint: Checkpoint) -> Selector:
    """The selector of a checkpoint's training at full strength, without its schedule and without potentials.

    ValueError if the checkpoint names none that is known here, or noise was chosen for residuals, which it lacks.
    """
    config = checkpoint.metadata.get("config", {})
    recorded = config.get("noise", {})
    if config.get("select_for", "action") != "action":
        raise CommandError(f"{checkpoint.path}: select_for={config['select_for']}; train with select_for=action")
    if "name" not in recorded:
        raise CommandError(f"{checkpoint.path}: does not name the noise that it was trained with")
    ignored = ("name", "potentials", "start", "stop", "ramp")
    return make_selector(recorded["name"], **{key: value for key, value in recorded.items() if key not in ignored})


def drawn_windows(
    checkpoint: Checkpoint, data: Path | None, count: int, seed: int, *, key: str
) -> tuple[Windows, Windows]:
    """Windows as a policy sees them, drawn by the seed, and all others; CommandError for more (key=count) than all."""
    windows = demonstrated(task_of(checkpoint), data, read_spec(checkpoint))
    if not 1 <= count <= len(windows):
        raise CommandError(f"{key}={count}: use 1 to {len(windows):,}, as many windows as the demonstrations have")
    order = torch.randperm(len(windows), generator=torch_generator("cpu", "lab windows", seed))
    return windows[order[:count]], windows[order[count:]]
