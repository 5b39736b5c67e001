"""The options of `train_policy.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from immiscible_policy.cli import CommandError
from immiscible_policy.training.options import (
    SYNONYMS,
    RunConfig,
    Schema,
    check_sampling,
    require_known,
    require_positive,
)

IMAGE_KEYS = ("images", "crop", "encoder_width", "shared_encoder")


@dataclass
class TrainConfig(RunConfig):
    """Every option of `train_policy.py`, after composition; configs/train.yaml says what each means."""

    task: str = "pusht"
    obs: str = "keypoints"
    mask: str = "none"
    select_for: str = "action"
    select_at: str = "all"
    mirror: bool = False
    validation: float = 0.0
    train_episodes: int | None = None
    horizon: int = 16
    obs_steps: int = 2
    action_steps: int = 8
    method: str = "diffusion"
    prediction: str = "epsilon"
    diffusion_steps: int = 100
    images: str = "stored"
    crop: int = 84
    encoder_width: int = 64
    shared_encoder: bool = False
    down_dims: list[int] = field(default_factory=list)
    step_embed_dim: int = 128
    kernel_size: int = 5
    groups: int = 8
    episodes: int = 1
    starts: str = "legacy"
    solver: str | None = None
    sampling_steps: int = 10
    spacing: str = "trailing"
    eta: float = 0.0


def compose_config(words: Sequence[str]) -> TrainConfig:
    """The options that command-line words ask for, as `Schema.compose`."""
    return SCHEMA.compose(words)


def read_config(path: Path) -> TrainConfig:
    """The options of a run directory, as `Schema.read`."""
    return SCHEMA.read(path)


def run_name(config: TrainConfig) -> str:
    """Task, observation, noise, data."""
    parts = [config.task, config.obs, config.noise["name"] if config.method == "diffusion" else config.method]
    if "k" in config.noise:
        parts.append(f"k{config.noise['k']}")
    for plain, value in (("none", config.mask), ("action", config.select_for), ("all", config.select_at)):
        if value != plain:
            parts.append(value)
    if config.data_scale != 1:
        parts.append(f"scale{config.data_scale:g}")
    if config.data:
        parts.append(Path(config.data).stem)
    if config.mirror:
        parts.append("mirror")
    if config.images != "stored":
        parts.append(config.images)
    return "_".join(parts)


def check(config: TrainConfig, given: Mapping[str, str]) -> None:
    """Resolve and refuse what only a policy's training has."""
    if config.solver is None:
        config.solver = "euler" if config.method == "flow" else "ddim"
    for key in IMAGE_KEYS:
        if key in given and config.obs != "image":
            raise CommandError(f"{key}={given[key]}: obs={config.obs} sees no images; use obs=image")
    require_positive(config, ("episodes", "diffusion_steps", "sampling_steps", "crop"))
    if config.train_episodes is not None and config.train_episodes < 1:
        raise CommandError(f"train_episodes={config.train_episodes}: needs 1 or more, or null for all")
    require_known(config, {
        "mask": ("none", "padding", "unsent"),
        "select_for": ("action", "residual"),
        "images": ("stored", "rendered"),
        "method": ("diffusion", "flow", "regression", "mip"),
    })  # fmt: skip
    check_sampling(config)


GROUPS = {word: word for word in ("obs", "noise", "scale", "experiment")}
SCHEMA = Schema("train", TrainConfig, GROUPS, run_name, check, SYNONYMS)
