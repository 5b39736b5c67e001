"""From a spec to an image model, and from a checkpoint back to one."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from immiscible_policy.cli import one_line
from immiscible_policy.image.model import AVERAGED, ImageModel, PixelCoder
from immiscible_policy.image.spec import MODELS, ImageSpec, Spec, read_spec
from immiscible_policy.network.image import image_unet, repeatable_dropout
from immiscible_policy.path import Ddpm, Flow
from immiscible_policy.path.consistency import Consistency, Metric, pseudo_huber
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError

PIXEL_STD = 0.5  # Standard deviation of natural images' pixels in [-1, 1]; 0.49 for CIFAR-10
METRICS = ("huber", "lpips")
LPIPS_SIDE = 224  # Smaller images are enlarged to this side first (Song et al., 2023, appendix C)


def build_image_model(spec: Spec, *, training: bool = True) -> ImageModel:
    """Build a model with fresh weights, drawn from torch's global stream; a metric only for training.

    ValueError if a name is unknown, the sizes do not fit together, or pretrained parts are missing or unusable.
    """
    if not isinstance(spec, ImageSpec):
        from immiscible_policy.image.stable_diffusion import build_stable_diffusion

        return build_stable_diffusion(spec)
    for name, known in (("model", MODELS), ("metric", METRICS)):
        if getattr(spec, name) not in known:
            raise ValueError(f"{name}={getattr(spec, name)}: choose from {', '.join(known)}")
    coder = PixelCoder(spec.size, spec.data_scale)
    unet = image_unet(**{name: getattr(spec, name) for name in signature(image_unet).parameters})
    if spec.model == "ddim":
        with torch.device("cpu"):  # where solvers read its numbers, also of a model that is built without memory
            path = Ddpm(spec.diffusion_steps, betas="linear", prediction=spec.prediction)
        return ImageModel(path, unet, coder, solver=Solver("ddim", min(50, spec.diffusion_steps)))
    if spec.model == "flow":
        return ImageModel(Flow(), unet, coder)
    if spec.training_steps is None:
        raise ValueError("training_steps=None: model=consistency needs its number, 1 or more")
    if spec.recipe == "ct" and spec.dropout > 0:
        raise ValueError(f"dropout={spec.dropout:g}: recipe=ct needs 0, as published; its teacher would drop others")
    teacher = deepcopy(unet).requires_grad_(False) if training and spec.recipe == "ct" else None
    consistency = Consistency(
        spec.training_steps,
        sigma_data=PIXEL_STD * spec.data_scale,
        metric=_metric(spec) if training else None,
        recipe=str(spec.recipe),
        teacher=None if teacher is None else partial(_predicted, teacher),
        repeat=repeatable_dropout(unet),
    )
    return ImageModel(consistency, unet, coder, solver=Solver("renoise", 1), averaged=teacher)


def _predicted(unet: Any, x: Tensor, t: Tensor) -> Tensor:
    """What diffusers' network returns, without its wrapping."""
    prediction: Tensor = unet(x, t).sample
    return prediction


def _metric(spec: ImageSpec) -> Metric:
    """What compares clean samples as pixels in [-1, 1]."""
    metric = pseudo_huber if spec.metric == "huber" else load_lpips()

    def compare(x: Tensor, y: Tensor) -> Tensor:
        return metric(x / spec.data_scale, y / spec.data_scale)

    return compare


def load_lpips() -> Metric:
    """LPIPS with VGG16 (Zhang et al., 2018): distances (B,) of images (B, 3, H, W) in [-1, 1] in a network's features.

    The network follows the images to their device; its weights never train and are not part of a state dict.
    ValueError if the package `lpips`, a torchvision that imports, or VGG's weights are missing.
    """
    try:
        import lpips

        network: Any = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
        raise ValueError(
            f"metric=lpips needs the package lpips and VGG16's weights, which torchvision downloads "
            f"({one_line(error)}): pip install 'immiscible-policy[lpips]', or use metric=huber"
        ) from None

    def distance(x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < LPIPS_SIDE:
            x, y = (interpolate(images, size=(LPIPS_SIDE, LPIPS_SIDE), mode="bilinear") for images in (x, y))
        return network.to(x.device)(x, y).flatten()

    return distance


def load_image_model(checkpoint: Checkpoint, *, pretrained: str | None = None) -> tuple[ImageModel, Spec]:
    """Build the model of a checkpoint with its EMA weights, in evaluation mode.

    A consistency model comes without metric and teacher: it samples, and its loss refuses.
    CheckpointError if the checkpoint is damaged or not of an image model, pretrained parts are missing or others, or
    `pretrained` is given for a model without any.
    """
    spec = read_spec(checkpoint)
    built = spec
    if not isinstance(spec, ImageSpec):
        spec = spec if pretrained is None else replace(spec, pretrained=pretrained)
        built = replace(spec, init="scratch")  # its weights are replaced in any case
    elif pretrained is not None:
        raise CheckpointError(f"pretrained={pretrained}: {checkpoint.path} holds model={spec.model}, which needs none")
    try:
        model = build_image_model(built, training=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path} describes an image model that cannot be built: {error}") from None
    try:
        weights = checkpoint.tensors("ema")
        model.load_state_dict({name: weights[name] for name in weights if not name.startswith(AVERAGED)})
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the image model it describes") from None
    return model.eval(), spec
