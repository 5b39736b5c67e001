"""Small image models: their sizes, and models around a network of the test's own."""

import torch
from torch import nn

from immiscible_policy.image.build import PIXEL_STD
from immiscible_policy.image.model import ImageModel, PixelCoder
from immiscible_policy.image.spec import ImageSpec, StableDiffusionSpec
from immiscible_policy.network.image import repeatable_dropout
from immiscible_policy.path import Ddpm, Flow
from immiscible_policy.path.consistency import Consistency, pseudo_huber
from immiscible_policy.solver import Solver


def tiny_spec(model: str = "ddim", **changes) -> ImageSpec:
    """A U-Net of two resolutions on images of 8 x 8 pixels."""
    values = {
        "size": 8,
        "channels": (8, 16),
        "layers": 1,
        "attention": (False, True),
        "groups": 4,
        "head_channels": 8,
        "dropout": 0.0,
        "layout": "diffusers",
        "data_scale": 1.0,
        "diffusion_steps": 1000,
        "prediction": "epsilon",
        "recipe": "ict" if model == "consistency" else None,
        "metric": "huber",
        "training_steps": 800 if model == "consistency" else None,
    }
    return ImageSpec(model=model, **values | changes)


def tiny_stable_diffusion_spec(pretrained, **changes) -> StableDiffusionSpec:
    """Images of 64 x 64 pixels."""
    values = {
        "init": "scratch",
        "size": 64,
        "data_scale": 1.0,
        "noise_offset": 0.0,
        "prompt_dropout": 0.0,
        "guidance": 7.5,
        "gradient_checkpointing": False,
        "frozen_precision": "fp32",
    }
    return StableDiffusionSpec(pretrained=str(pretrained), **values | changes)


def calm(model: ImageModel) -> ImageModel:
    """The model in evaluation mode, its outputs a tenth: random networks magnify rounding a thousand times."""
    with torch.no_grad():
        model.denoiser.conv_out.weight.mul_(0.1)
    return model.eval()


def model_of(kind: str, network=None, size: int = 8, data_scale: float = 1.0, **options) -> ImageModel:
    """An image model around a network; options are the path's."""
    network, coder = nn.Identity() if network is None else network, PixelCoder(size, data_scale)
    if kind == "ddim":
        return ImageModel(Ddpm(1000, betas="linear", **options), network, coder, solver=Solver("ddim", 50))
    if kind == "flow":
        return ImageModel(Flow(), network, coder)
    parts = {"sigma_data": PIXEL_STD * data_scale, "repeat": repeatable_dropout(network)} | options
    metric = parts.pop("metric", pseudo_huber)
    compare = metric and (lambda x, y: metric(x / data_scale, y / data_scale))
    path = Consistency(parts.pop("training_steps", 8000), metric=compare, **parts)
    return ImageModel(path, network, coder, solver=Solver("renoise", 1))
