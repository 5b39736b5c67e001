"""Image generation with immiscible noise: the papers' image experiments, on the same selectors and training loop."""

from immiscible_policy.image.build import ImageSpec, build_image_model, load_image_model
from immiscible_policy.image.consistency import ConsistencyModel
from immiscible_policy.image.data import Images, load_cifar10, load_images, shrink, to_bytes, to_pixels
from immiscible_policy.image.diffusion import ImageDiffusion
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.image.flow import FlowMatching
from immiscible_policy.image.model import ImageModel, ImageSample

__all__ = [
    "ConsistencyModel",
    "FlowMatching",
    "ImageDiffusion",
    "ImageModel",
    "ImageSample",
    "ImageSpec",
    "Images",
    "build_image_model",
    "export_diffusers",
    "load_cifar10",
    "load_image_model",
    "load_images",
    "shrink",
    "to_bytes",
    "to_pixels",
]
