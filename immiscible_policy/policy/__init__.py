"""The diffusion policy: a 1-D temporal U-Net denoiser, image encoders, its normalisation, loss and samplers."""

from immiscible_policy.network.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.policy.diffusion import DiffusionPolicy, Sampler
from immiscible_policy.policy.image import ImagePolicy, Pictured
from immiscible_policy.policy.normalizer import Normalizer

__all__ = [
    "ConditionalUnet1d",
    "DiffusionPolicy",
    "EncoderSpec",
    "ImageEncoder",
    "ImagePolicy",
    "Normalizer",
    "Pictured",
    "Sampler",
]
