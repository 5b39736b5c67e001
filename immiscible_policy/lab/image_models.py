"""The laboratory's small image models: CIFAR-10 averaged to 16x16, trained once with a selector and kept.

A model costs about four minutes on one free CPU core. Those wanted are looked up in a directory, trained when absent,
and resumed when interrupted:

models/knn_k8_std0.5_seed0/
    metrics.jsonl               loss every 100 steps
    step_002000/                a checkpoint: weights, EMA weights, what they are
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.cli import require_writable
from immiscible_policy.image.build import PIXEL_STD, build_image_model, load_image_model
from immiscible_policy.image.data import Images, load_cifar10
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.spec import ImageSpec, spec_metadata
from immiscible_policy.noise import make_selector
from immiscible_policy.provenance import versions
from immiscible_policy.randomness import derive_seed
from immiscible_policy.recipes.image_objective import ImageObjective
from immiscible_policy.store.checkpoint import (
    Checkpoint,
    CheckpointError,
    alone,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    tidy,
)
from immiscible_policy.store.metrics import MetricsFile
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.options import native_bf16
from immiscible_policy.training.state import TrainState

SIZE = 16
CHECKPOINT_EVERY = 500


@dataclass(frozen=True)
class ImageTraining:
    """How a laboratory model is trained; every value decides the result.

    Attributes:
        noise: Name of the selector.
        options: The selector's options.
        data_std: Standard deviation that the pixels are brought to.
        seed: Training seed.
        steps: Optimizer steps.
        batch_size: Images per step.
        lr: Peak learning rate; 200 steps of warm-up, then cosine to zero.
        channels: Channels of the U-Net at 16x16, 8x8, ... pixels; it attends at the coarsest.
    """

    noise: str = "vanilla"
    options: Mapping[str, Any] = field(default_factory=dict)
    data_std: float = PIXEL_STD
    seed: int = 0
    steps: int = 2000
    batch_size: int = 64
    lr: float = 2e-3
    channels: tuple[int, ...] = (16, 32, 64)

    @property
    def name(self) -> str:
        """A directory name that tells selector, data std and seed."""
        options = [f"{key}{value}" for key, value in self.options.items()]
        return "_".join([self.noise, *options, f"std{self.data_std:g}", f"seed{self.seed}"])

    @property
    def identity(self) -> dict[str, Any]:
        """All values, as JSON stores them."""
        return asdict(self) | {"options": dict(self.options), "channels": list(self.channels)}

    @property
    def spec(self) -> ImageSpec:
        """The model's sizes."""
        attention = (False,) * (len(self.channels) - 1) + (True,)
        return ImageSpec(
            model="ddim",
            size=SIZE,
            channels=self.channels,
            layers=1,
            attention=attention,
            groups=8,
            head_channels=8,
            dropout=0.0,
            layout="diffusers",
            data_scale=self.data_std / PIXEL_STD,
            diffusion_steps=1000,
            prediction="epsilon",
            metric="huber",
            training_steps=None,
        )


def image_model(models: Path, images: Path, training: ImageTraining) -> ImageModel:
    """The model of a training, in evaluation mode with its EMA weights; trained first, or trained on, where need be.

    Args:
        models: Directory of all models.
        images: CIFAR-10, as `load_cifar10` takes it; not read if the model is there.
        training: Which model.

    Raises:
        ValueError: If selector, sizes or images are unusable, or the model there was trained otherwise.
    """
    directory = models / training.name
    newest = _newest(directory, training)
    if newest is None or newest.step < training.steps:
        pixels = load_cifar10(images, "train", size=SIZE)
        with alone(directory):
            train_image_model(directory, pixels, training)
    return _load(read_checkpoint(_path(directory, training.steps)))


def _load(checkpoint: Checkpoint) -> ImageModel:
    model, spec = load_image_model(checkpoint)
    if spec.model != "ddim":
        raise CheckpointError(f"{checkpoint.path} holds model={spec.model}; the laboratory's models are ddim")
    return model


def require_models(models: Path, images: Path, trainings: Iterable[ImageTraining]) -> None:
    """Refuse at once what `image_model` would refuse after others have been trained.

    Raises:
        ValueError: If a model there is damaged or was trained otherwise, or one is to be trained without images.
    """
    for training in trainings:
        newest = _newest(models / training.name, training)
        if newest is not None and newest.step >= training.steps:
            _load(newest)
        else:
            require_writable("models", models / training.name)
            load_cifar10(images, "train", limit=1)


def train_image_model(directory: Path, images: Tensor, training: ImageTraining) -> None:
    """Train from scratch, or from the newest checkpoint, with the project's loop; prints a line every 100 steps.

    Args:
        directory: Where checkpoints and metrics go.
        images: Training images (N, 3, 16, 16), uint8.
        training: How.

    Raises:
        ValueError: If selector or sizes are unusable, the checkpoint there is of another training or of other images,
            or the loss is no longer a number.
    """
    select = make_selector(training.noise, **training.options)
    precision = "bf16" if native_bf16("cpu") else "fp32"
    origin = {"data_hash": hashlib.sha256(images.numpy().tobytes()).hexdigest(), "precision": precision}
    held = Images(images, SIZE, origin["data_hash"])
    state, model = build_state(training)
    newest = _newest(directory, training)
    if newest is not None:
        _require_same(newest, origin)
        state.restore(newest.step, newest.tensors)
    metrics = MetricsFile(directory / "metrics.jsonl", state.step)

    def record(row: dict[str, Any]) -> None:
        if "loss" in row:
            metrics.record(row)
            print(f"{training.name}: step {row['step']} loss {row['loss']:.4f} ({row['rate']:.1f} steps/s)", flush=True)

    train(
        state,
        ImageObjective(model, held, select, batch_size=training.batch_size, seed=training.seed),
        Cadence(training.steps, log_every=100, eval_every=training.steps, checkpoint_every=CHECKPOINT_EVERY),
        precision=precision,
        record=record,
        evaluate=lambda state: {},
        save=lambda state: _save(state, directory, training, origin),
    )
    metrics.close()


def build_state(training: ImageTraining) -> tuple[TrainState, ImageModel]:
    """The training state at step 0, and the model in it; weights are a function of the seed."""
    torch.manual_seed(derive_seed("weights", training.seed))  # torch's initialisers draw from the global stream alone
    model = build_image_model(training.spec)
    state = TrainState(
        model,
        lr=training.lr,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        warmup_steps=min(200, training.steps // 2),
        steps=training.steps,
        ema_power=0.75,
        ema_max=0.999,
    )
    return state, model


def _newest(directory: Path, training: ImageTraining) -> Checkpoint | None:
    """The newest checkpoint, if any, of exactly this training."""
    newest = newest_checkpoint(directory)
    recorded = {} if newest is None else newest.metadata.get("training", {})
    if newest is not None and recorded != training.identity:
        differing = [key for key, value in training.identity.items() if recorded.get(key) != value]
        raise ValueError(f"{directory} was trained with another {', '.join(differing)}; name another models= directory")
    return newest


def _require_same(checkpoint: Checkpoint, origin: Mapping[str, str]) -> None:
    """Refuse to train on from a checkpoint of other data or precision."""
    for key, value in origin.items():
        if checkpoint.metadata.get(key) != value:
            raise ValueError(f"{checkpoint.path} was trained with another {key}; name another models= directory")


def _save(state: TrainState, directory: Path, training: ImageTraining, origin: Mapping[str, str]) -> None:
    """Write a checkpoint and drop the one before."""
    about = {"training": training.identity, **origin, "versions": versions(), "step": state.step}
    save_checkpoint(_path(directory, state.step), spec_metadata(training.spec) | about, state.tensors())
    tidy(directory, "last+best", {})


def _path(directory: Path, step: int) -> Path:
    return directory / f"step_{step:06d}"
