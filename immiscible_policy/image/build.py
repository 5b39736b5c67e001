"""From plain sizes to an image diffusion model: what a checkpoint records, and what it takes to rebuild it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel

from immiscible_policy.image.diffusion import PIXEL_STD, ImageDiffusion
from immiscible_policy.training.checkpoint import Checkpoint, CheckpointError


@dataclass(frozen=True)
class ImageSpec:
    """Everything that shapes an image model except its weights; plain values, so that it is stored as JSON.

    Attributes:
        size: Side of the images, pixels.
        channels: Channels of the U-Net at each resolution, the finest first.
        layers: Residual blocks per resolution.
        attention: For each resolution, whether it attends.
        groups: Of its group normalisation.
        data_std: Standard deviation that the data is brought to.
        diffusion_steps: Length of the noising chain.
    """

    size: int
    channels: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    groups: int
    data_std: float = PIXEL_STD
    diffusion_steps: int = 1000


def build_image_diffusion(spec: ImageSpec) -> ImageDiffusion:
    """Build a model with fresh weights.

    Raises:
        ValueError: If the sizes do not fit together.
    """
    factor = 2 ** (len(spec.channels) - 1)
    if spec.size % factor:
        raise ValueError(f"size={spec.size} does not divide by {factor}, as channels={list(spec.channels)} need")
    if len(spec.attention) != len(spec.channels):
        raise ValueError(f"attention={list(spec.attention)} needs one entry for each of channels={list(spec.channels)}")
    odd = [width for width in spec.channels if width % spec.groups]
    if odd:
        raise ValueError(f"channels={odd} do not divide into groups={spec.groups}")
    denoiser = UNet2DModel(
        sample_size=spec.size,
        in_channels=3,
        out_channels=3,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in spec.attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(spec.attention)),
        norm_num_groups=spec.groups,
    )
    return ImageDiffusion(denoiser, data_std=spec.data_std, diffusion_steps=spec.diffusion_steps)


def spec_metadata(spec: ImageSpec) -> dict[str, Any]:
    """What a checkpoint's metadata records about an image model."""
    return {"image": asdict(spec)}


def load_image_diffusion(checkpoint: Checkpoint) -> tuple[ImageDiffusion, ImageSpec]:
    """Build the model of a checkpoint with its EMA weights, in evaluation mode.

    Raises:
        CheckpointError: If the checkpoint is damaged or describes no image model.
    """
    recorded = checkpoint.metadata.get("image")
    if not isinstance(recorded, dict) or set(recorded) != {field.name for field in fields(ImageSpec)}:
        raise CheckpointError(f"{checkpoint.path} describes no image model that this version knows")
    lists = {key: tuple(recorded[key]) for key in ("channels", "attention")}
    spec = ImageSpec(**recorded | lists)
    model = build_image_diffusion(spec)
    try:
        model.load_state_dict(checkpoint.tensors("ema"))
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the image model it describes") from None
    return model.eval(), spec
