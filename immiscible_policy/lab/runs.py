"""Finished runs as the laboratory takes them: their newest checkpoints, their selectors, and windows to measure on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.evaluation.agent import Agent, read_policy, read_spec
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import Images, load_images, to_pixels
from immiscible_policy.image.evaluation.measure import REFERENCE_BATCH
from immiscible_policy.image.spec import read_spec as read_image_spec
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.palette import COLOURS
from immiscible_policy.path import ProbabilityPath
from immiscible_policy.randomness import torch_generator
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.tasks import Task, open_demonstrations, primary, recorded_task, task_windows

RUNS = Option(
    named_runs,
    None,
    "runs of train_policy.py or of train_image.py, DIR,DIR or NAME=DIR,...; the others are compared with the first",
)
DATA = Option(Path, None, "what runs are measured on; none: what each was trained on")

Newest = dict[str, dict[int, Checkpoint]]  # The newest checkpoint of every training seed of each run, by the run's name


class Runs(NamedTuple):
    """What `runs=` names: policies, or image models, the first seed of each."""

    policies: Newest
    models: dict[str, Checkpoint]


def newest_runs(runs: Mapping[str, RunDirectory] | None) -> Runs:
    """The models of `runs=`, all of one kind, each of which can be loaded; CommandError if not.

    Policies that see pictures are refused.
    """
    result = _newest(runs)
    drawing = [name for name, seeds in result.items() if draws_images(next(iter(seeds.values())))]
    if not drawing:
        return Runs(newest_policies(runs), {})
    if len(drawing) < len(result):
        other = next(name for name in result if name not in drawing)
        raise CommandError(f"runs= names {drawing[0]}, an image model, and {other}, a policy; name runs of one kind")
    models = {name: next(iter(seeds.values())) for name, seeds in result.items()}
    for checkpoint in models.values():
        load_image_model(checkpoint)  # a damaged one is noticed before the others are measured
    return Runs({}, models)


def newest_policies(runs: Mapping[str, RunDirectory] | None, *, pictures: bool = False) -> Newest:
    """The policies of `runs=`, all of which can be loaded; CommandError if one sees pictures and must not."""
    result = _newest(runs)
    for run, seeds in result.items():
        for checkpoint in seeds.values():
            if draws_images(checkpoint):
                raise CommandError(f"runs= names {run}, an image model; this program takes policies")
            read_policy(checkpoint)
            if not pictures and read_spec(checkpoint).encoder:
                raise CommandError(
                    f"runs= names {run}, which sees pictures; this program takes policies of numbers alone"
                )
    return result


def draws_images(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of an image model, not of a policy."""
    return "image" in checkpoint.metadata


def _newest(runs: Mapping[str, RunDirectory] | None) -> Newest:
    """The newest checkpoints of the runs that `runs=` names."""
    result: Newest = {}
    for name, run in (runs or {}).items():
        run.require_own_seeds()
        result[name] = {seed: c for seed in run.seeds() if (c := run.seed(seed).newest()) is not None}
        if not result[name]:
            raise CommandError(f"runs={run.path}: no checkpoint there; train it first")
    if len(result) > len(COLOURS):
        raise CommandError(f"runs= names {len(result)} runs; one picture fits at most {len(COLOURS)}")
    return result


def layered(path: ProbabilityPath, calls: int) -> Solver:
    """DDIM, whose calls are a model's layers; of a consistency model, which has no DDIM, its own solver.

    What has neither is refused where it is asked for its plan.
    """
    return Solver(next((name for name in ("ddim", "renoise") if name in path.solvers), "ddim"), calls)


def task_of(checkpoint: Checkpoint) -> Task:
    """The task that a checkpoint was trained for; the default one where it names none."""
    return recorded_task(checkpoint.config)


def rolled_out(
    checkpoint: Checkpoint, agent: Agent, starts: Sequence[int], seed: int = 0, **options: Any
) -> NDArray[np.float64]:
    """Scores (starts,), the task's primary metric, of a checkpoint's agent; further options are those of `evaluate`."""
    task = task_of(checkpoint)
    rows = evaluate(task, agent, starts, seed=seed, checkpoint=checkpoint.step, **options)
    return np.array([row.metrics[primary(task).name] for row in rows])


def own_selector(checkpoint: Checkpoint) -> Selector:
    """The selector of a checkpoint's training at full strength, without its schedule and without potentials.

    ValueError if the checkpoint names none that is known here, or noise was chosen for residuals, at some levels or
    without some steps, which it knows nothing of.
    """
    config = checkpoint.config
    recorded = config.get("noise", {})
    for key, plain in {"select_for": "action", "exclude": "none", "select_at": "all"}.items():
        if config.get(key, plain) != plain:
            raise CommandError(f"{checkpoint.path}: {key}={config[key]}; train with {key}={plain}")
    if "name" not in recorded:
        raise CommandError(f"{checkpoint.path}: does not name the noise that it was trained with")
    ignored = ("name", "potentials", "start", "stop", "ramp")
    return make_selector(recorded["name"], **{key: value for key, value in recorded.items() if key not in ignored})


def chosen_together(checkpoint: Checkpoint) -> int:
    """Samples whose noise a checkpoint's training chose together: those of `select_over` batches."""
    config = checkpoint.config
    return int(config.get("select_over", 1) * config["batch_size"])


def images_of(checkpoint: Checkpoint, data: Path | None, split: str = "train", count: int | None = None) -> Images:
    """The first `count` images, or all, of the set that an image model was trained on, from `data` or where it lay.

    They have the model's side; there may be fewer. CommandError if the set lies there no longer.
    """
    config = checkpoint.config
    place = data or config.get("data")
    if place is None or not Path(place).exists():
        raise CommandError(f"data={place}: the images of {checkpoint.path} are not there; give data=PATH")
    dataset, size = config.get("dataset", "cifar10"), read_image_spec(checkpoint).size
    return load_images(dataset, place, split=split, size=size, limit=count)


def clean_samples(checkpoint: Checkpoint, data: Path | None, count: int, seed: int) -> Tensor:
    """Clean samples (N, ...) of training data as a model diffuses them: N = `count`, or all where there are fewer."""
    if not draws_images(checkpoint):
        policy, _ = read_policy(checkpoint)
        windows = windows_of(checkpoint, data)
        return policy.clean(drawn_windows(checkpoint, data, min(count, len(windows)), seed, key="pictures")[0].action)
    images, coder = images_of(checkpoint, data, count=count), load_image_model(checkpoint)[0].coder
    generator, rows = torch_generator("cpu", "lab encode", seed), torch.arange(len(images))
    return torch.cat([coder.encode(to_pixels(images.pixels(part)), generator) for part in rows.split(REFERENCE_BATCH)])


def windows_of(checkpoint: Checkpoint, data: Path | None) -> Windows:
    """Windows as a policy sees them, of the demonstrations that it was trained on, from `data` or where they lay.

    CommandError if they lie there no longer.
    """
    config, spec, task = checkpoint.config, read_spec(checkpoint), task_of(checkpoint)
    place = data or config.get("data")
    if place is not None and not Path(place).exists():
        raise CommandError(f"data={place}: the demonstrations of {checkpoint.path} are not there; give data=PATH")
    action = config.get("action")
    demos = open_demonstrations(task, place, spec.obs, action)
    return task_windows(task, demos, spec.obs, Layout.of(spec), config.get("images", "stored"), action)


def drawn_windows(
    checkpoint: Checkpoint, data: Path | None, count: int, seed: int, *, key: str
) -> tuple[Windows, Windows]:
    """Windows as a policy sees them, drawn by the seed, and all others; CommandError for more (key=count) than all."""
    windows = windows_of(checkpoint, data)
    if not 1 <= count <= len(windows):
        raise CommandError(f"{key}={count}: use 1 to {len(windows):,}, as many windows as the demonstrations have")
    order = torch.randperm(len(windows), generator=torch_generator("cpu", "lab windows", seed))
    return windows[order[:count]], windows[order[count:]]
