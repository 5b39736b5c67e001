"""What shapes an image model, as plain values that a checkpoint records as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from immiscible_policy.cli import one_line
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.reading import described

MODELS = ("ddim", "flow", "consistency")
PROMPTED = ("sd",)
"""Models whose images depend on prompts."""


@dataclass(frozen=True)
class ImageSpec:
    """Everything that shapes an unconditional image model except its weights; sizes as `image_unet` takes them."""

    model: str  # `ddim`, `flow` or `consistency`
    size: int
    channels: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    groups: int
    head_channels: int
    dropout: float
    layout: str
    data_scale: float  # factor from pixels in [-1, 1] to what is noised
    diffusion_steps: int  # length of the noising chain (`ddim`)
    prediction: str  # what the network predicts (`ddim`): `epsilon`, `sample` or `v_prediction`
    recipe: str | None  # how it trains (`consistency`): `ct` or `ict`
    metric: str  # what compares images in training (`consistency`): `huber` or `lpips`
    training_steps: int | None  # length of the training (`consistency`, whose noise levels depend on it)


@dataclass(frozen=True)
class StableDiffusionSpec:
    """Everything that shapes a Stable Diffusion model except its U-Net's weights; see `ImageModel` for its numbers."""

    pretrained: str  # directory in diffusers' layout, or hub id, of the ready-made parts
    init: str  # the U-Net's first weights: `scratch` for fresh ones, `pretrained` for fine-tuning
    size: int  # side of the images [px]
    data_scale: float  # factor on the latents beside the autoencoder's own
    noise_offset: float
    prompt_dropout: float
    guidance: float
    gradient_checkpointing: bool  # the backward pass computes activations again instead of keeping them
    frozen_precision: str  # arithmetic of autoencoder and text encoder: `fp32`, or `bf16` over float32 weights
    pretrained_hash: str = ""  # of the ready-made parts, see `stable_diffusion.pinned`; empty for whatever is there
    model: str = "sd"


Spec = ImageSpec | StableDiffusionSpec


def spec_metadata(spec: Spec) -> dict[str, Any]:
    """What a checkpoint's metadata records about an image model."""
    return {"image": asdict(spec)}


def read_spec(checkpoint: Checkpoint) -> Spec:
    """What a checkpoint records about its image model; CheckpointError if this version does not know such a model."""
    recorded = checkpoint.metadata.get("image")
    values = recorded if isinstance(recorded, dict) else {}
    kind: type[Spec] = StableDiffusionSpec if values.get("model") == "sd" else ImageSpec
    if set(values) != {field.name for field in fields(kind)}:
        raise CheckpointError(f"{checkpoint.path} does not describe an image model that this version knows")
    try:
        return described(kind, values)
    except TypeError as error:
        raise CheckpointError(f"{checkpoint.path} describes no image model ({one_line(error)})") from None
