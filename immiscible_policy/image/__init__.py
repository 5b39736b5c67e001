"""Image generation with immiscible noise: the papers' image experiments, on the same selectors and training loop."""

from immiscible_policy.image.build import ImageSpec, build_image_diffusion, load_image_diffusion
from immiscible_policy.image.data import load_cifar10, shrink, to_bytes, to_pixels
from immiscible_policy.image.diffusion import ImageDiffusion, ImageSample

__all__ = [
    "ImageDiffusion",
    "ImageSample",
    "ImageSpec",
    "build_image_diffusion",
    "load_cifar10",
    "load_image_diffusion",
    "shrink",
    "to_bytes",
    "to_pixels",
]
