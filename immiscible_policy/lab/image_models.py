"""The laboratory's small image models: runs of `train_image.py` on CIFAR-10 averaged to 16x16, trained once and kept.

A model costs about four minutes on one free CPU core. Those wanted are looked up in a directory of runs, trained when
absent, and resumed when interrupted: `models/knn_k8_std0.5_seed0/` and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from immiscible_policy.cli import require_writable
from immiscible_policy.image.build import PIXEL_STD, load_image_model
from immiscible_policy.image.model import ImageModel
from immiscible_policy.recipes.image import ImageRecipe
from immiscible_policy.recipes.image_config import SCHEMA, ImageConfig
from immiscible_policy.store.checkpoint import CheckpointError
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.driver import train_run

SIZE = 16


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
        """A directory name that says selector, data std and seed."""
        options = [f"{key}{value}" for key, value in self.options.items()]
        return "_".join([self.noise, *options, f"std{self.data_std:g}", f"seed{self.seed}"])

    def config(self, models: Path, images: Path) -> ImageConfig:
        """The options of its run.

        Raises:
            ValueError: If one is unusable.
        """
        attention = ["false"] * (len(self.channels) - 1) + ["true"]
        return SCHEMA.compose([
            "model=ddim", "layout=diffusers", "scale=cpu", "device=cpu", "wandb=disabled", "resume=true",
            f"noise={self.noise}", *(f"{key}={value}" for key, value in self.options.items()),
            f"data={images}", f"out={models / self.name}", f"size={SIZE}", f"data_scale={self.data_std / PIXEL_STD}",
            f"channels=[{','.join(map(str, self.channels))}]", f"attention=[{','.join(attention)}]",
            f"seed={self.seed}", f"steps={self.steps}", f"batch_size={self.batch_size}", f"lr={self.lr}",
            "lr_schedule=cosine", f"warmup_steps={min(200, self.steps // 2)}", "clip=null", "log_every=100",
            "keep=last+best", f"eval_every={self.steps}", "samples=16", "sampling_steps=10",
        ])  # fmt: skip


def image_model(models: Path, images: Path, training: ImageTraining) -> ImageModel:
    """The model of a training, in evaluation mode with its EMA weights; trained first, or trained on, where need be.

    Args:
        models: Directory of all models.
        images: CIFAR-10, as `load_cifar10` takes it; not read if the model is there.
        training: Which model.

    Raises:
        ValueError: If selector, sizes or images are unusable, or the model there was trained otherwise.
    """
    config = training.config(models, images)
    if not _is_trained(config):
        threads = torch.get_num_threads()
        train_run(ImageRecipe, config)
        torch.set_num_threads(threads)
    return _load(config)


def require_models(models: Path, images: Path, trainings: Iterable[ImageTraining]) -> None:
    """Refuse at once what `image_model` would refuse after others have been trained.

    Raises:
        ValueError: If a model there is damaged or was trained otherwise, or one is to be trained without images.
    """
    for training in trainings:
        config = training.config(models, images)
        if _is_trained(config):
            _load(config)
        else:
            require_writable("models", models / training.name)
            ImageRecipe.prepare(replace(config, limit=1))


def _is_trained(config: ImageConfig) -> bool:
    """Whether the model is there.

    Raises:
        ValueError: If it was trained otherwise.
    """
    run = RunDirectory(str(config.out))
    recorded = SCHEMA.read(run).identity if run.exists else config.identity
    differing = [key for key, value in config.identity.items() if key != "data" and recorded[key] != value]
    if differing:
        raise ValueError(f"{run.path} was trained with another {', '.join(differing)}; name another models= directory")
    return run.seed(int(config.seed)).is_finished(config.steps)


def _load(config: ImageConfig) -> ImageModel:
    checkpoint = RunDirectory(str(config.out)).seed(int(config.seed)).checkpoint(config.steps)
    model, spec = load_image_model(checkpoint)
    if spec.model != "ddim":
        raise CheckpointError(f"{checkpoint.path} holds model={spec.model}; the laboratory's models are ddim")
    return model
