"""From plain sizes to an image model: what a checkpoint records, and what it takes to rebuild it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from diffusers.models.unets.unet_2d import UNet2DModel

from immiscible_policy.image.consistency import ConsistencyModel, Metric, pseudo_huber
from immiscible_policy.image.diffusion import PIXEL_STD, ImageDiffusion
from immiscible_policy.image.flow import FlowMatching
from immiscible_policy.image.lpips import load_lpips
from immiscible_policy.image.model import require_scale
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError

if TYPE_CHECKING:  # it needs transformers, which the others do without
    from immiscible_policy.image.stable_diffusion import StableDiffusion, StableDiffusionSpec

MODELS = ("ddim", "flow", "consistency")
METRICS = ("huber", "lpips")
LAYOUTS: dict[str, dict[str, Any]] = {
    "diffusers": {},
    "ddpm": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
}
"""Finer options of the U-Net: diffusers' own defaults, which are also guided diffusion's and torchcfm's (symmetric
padding, cosine before sine), or those of Ho et al. (2020), as google/ddpm-cifar10-32 has them."""

UnconditionalModel = ImageDiffusion | FlowMatching | ConsistencyModel


@dataclass(frozen=True)
class ImageSpec:
    """Everything that shapes an image model except its weights; plain values, so that it is stored as JSON.

    Attributes:
        model: `ddim`, `flow` or `consistency`.
        size: Side of the images, pixels.
        channels: Channels of the U-Net at each resolution, the finest first.
        layers: Residual blocks per resolution.
        attention: For each resolution, whether it attends; the middle always does.
        groups: Of its group normalisation.
        head_channels: Channels of an attention head.
        dropout: In the residual blocks.
        layout: Finer options of the U-Net, `diffusers` or `ddpm`; see `LAYOUTS`.
        data_scale: Factor from pixels in [-1, 1] to what is noised.
        diffusion_steps: Length of the noising chain (`ddim`).
        training_steps: Length of the training (`consistency`, whose noise levels depend on it).
        metric: What compares images in training (`consistency`): `huber` or `lpips`.
    """

    model: str
    size: int
    channels: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    groups: int
    head_channels: int = 8
    dropout: float = 0.0
    layout: str = "diffusers"
    data_scale: float = 1.0
    diffusion_steps: int = 1000
    training_steps: int | None = None
    metric: str = "huber"


Model = Union[UnconditionalModel, "StableDiffusion"]
Spec = Union[ImageSpec, "StableDiffusionSpec"]


def build_image_model(spec: Spec, *, lpips: Path | None = None) -> Model:
    """Build a model with fresh weights.

    Args:
        spec: Its sizes.
        lpips: Weights of LPIPS, for `metric=lpips`; see `load_lpips`.

    Raises:
        ValueError: If a name is unknown, the sizes do not fit together, or ready-made weights are missing or unusable.
    """
    if not isinstance(spec, ImageSpec):
        from immiscible_policy.image.stable_diffusion import build_stable_diffusion

        return build_stable_diffusion(spec)
    require_fit(spec)
    if (spec.metric == "lpips") != (lpips is not None):
        raise ValueError(
            f"metric={spec.metric} with lpips={lpips}: metric=lpips, and no other, takes a file of weights"
        )
    return _build(spec, pseudo_huber if lpips is None else load_lpips(lpips))


def require_fit(spec: ImageSpec) -> None:
    """Refuse sizes that do not fit together.

    Raises:
        ValueError: If a name is unknown or the sizes do not fit together.
    """
    for name, known in (("model", MODELS), ("layout", tuple(LAYOUTS)), ("metric", METRICS)):
        if getattr(spec, name) not in known:
            raise ValueError(f"{name}={getattr(spec, name)}: known are {', '.join(known)}")
    for name in ("size", "layers", "groups", "head_channels", "diffusion_steps"):
        if getattr(spec, name) < 1:
            raise ValueError(f"{name}={getattr(spec, name)}: needs 1 or more")
    if not 0 <= spec.dropout < 1:
        raise ValueError(f"dropout={spec.dropout}: needs a number from 0 to below 1")
    if spec.model == "consistency" and (spec.training_steps is None or spec.training_steps < 1):
        raise ValueError(f"training_steps={spec.training_steps}: model=consistency needs its number, 1 or more")
    require_scale(spec.data_scale)
    _require_channels(spec)


def _require_channels(spec: ImageSpec) -> None:
    factor = 2 ** (len(spec.channels) - 1)
    if not spec.channels or spec.size % factor:
        raise ValueError(f"size={spec.size} does not divide by {factor}, as channels={list(spec.channels)} need")
    if len(spec.attention) != len(spec.channels):
        raise ValueError(f"attention={list(spec.attention)} needs one entry for each of channels={list(spec.channels)}")
    odd = [width for width in spec.channels if width % spec.groups]
    if odd:
        raise ValueError(f"channels={odd} do not divide into groups={spec.groups}")
    attends = (*spec.attention[:-1], True)  # the middle works at the last width
    headless = [w for w, here in zip(spec.channels, attends, strict=True) if here and w % spec.head_channels]
    if headless:
        raise ValueError(f"channels={headless} do not divide into heads of head_channels={spec.head_channels}")


def _build(spec: ImageSpec, metric: Metric | None) -> UnconditionalModel:
    if spec.model == "ddim":
        return ImageDiffusion(
            _unet(spec), size=spec.size, data_scale=spec.data_scale, diffusion_steps=spec.diffusion_steps
        )
    if spec.model == "flow":
        return FlowMatching(_unet(spec), size=spec.size, data_scale=spec.data_scale)
    assert spec.training_steps is not None
    return ConsistencyModel(
        _unet(spec),
        size=spec.size,
        training_steps=spec.training_steps,
        data_scale=spec.data_scale,
        metric=metric,
    )


def _unet(spec: ImageSpec) -> UNet2DModel:
    return UNet2DModel(
        sample_size=spec.size,
        in_channels=3,
        out_channels=3,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in spec.attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(spec.attention)),
        norm_num_groups=spec.groups,
        attention_head_dim=spec.head_channels,
        dropout=spec.dropout,
        **LAYOUTS[spec.layout],
    )


def spec_metadata(spec: Spec) -> dict[str, Any]:
    """What a checkpoint's metadata records about an image model."""
    if not isinstance(spec, ImageSpec):
        from immiscible_policy.image.stable_diffusion import stable_diffusion_metadata

        return stable_diffusion_metadata(spec)
    return {"image": asdict(spec)}


def load_image_model(checkpoint: Checkpoint, *, pretrained: str | None = None) -> tuple[Model, Spec]:
    """Build the model of a checkpoint with its EMA weights, in evaluation mode.

    A consistency model whose metric was LPIPS comes without it: it samples, and its loss refuses.

    Args:
        checkpoint: What training wrote.
        pretrained: Where the ready-made parts of Stable Diffusion lie now; None for where they lay in training.

    Raises:
        CheckpointError: If the checkpoint is damaged or describes no image model, ready-made parts are missing or
            others, or `pretrained` is given for a model without any.
    """
    spec = read_spec(checkpoint)
    if not isinstance(spec, ImageSpec):
        from immiscible_policy.image.stable_diffusion import load_stable_diffusion

        return load_stable_diffusion(checkpoint, pretrained)
    if pretrained is not None:
        raise CheckpointError(f"pretrained={pretrained}: {checkpoint.path} holds model={spec.model}, which needs none")
    try:
        require_fit(spec)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path} describes an image model that cannot be built: {error}") from None
    model = _build(spec, pseudo_huber if spec.metric == "huber" else None)
    try:
        model.load_state_dict(checkpoint.tensors("ema"))
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the image model it describes") from None
    return model.eval(), spec


def read_spec(checkpoint: Checkpoint) -> Spec:
    """What a checkpoint's metadata records about its image model; nothing is built.

    Raises:
        CheckpointError: If it describes no image model that this version knows.
    """
    recorded = checkpoint.metadata.get("image")
    if isinstance(recorded, dict) and recorded.get("model") == "sd":
        from immiscible_policy.image.stable_diffusion import read_stable_diffusion_spec

        return read_stable_diffusion_spec(checkpoint)
    known = {field.name for field in fields(ImageSpec)}
    needed = {field.name for field in fields(ImageSpec) if field.default is MISSING}
    values = _modern(recorded) if isinstance(recorded, dict) else {}
    if not needed <= set(values) <= known:
        raise CheckpointError(f"{checkpoint.path} describes no image model that this version knows")
    return ImageSpec(**values | {key: tuple(values[key]) for key in ("channels", "attention")})


def _modern(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded spec in today's words: the first image models were all DDIM, and told their data's deviation."""
    values = {"model": "ddim"} | dict(recorded)
    if "data_std" in values:
        values["data_scale"] = values.pop("data_std") / PIXEL_STD
    return values
