"""The diffusion policy: a 1-D temporal U-Net denoiser, image encoders, its normalisation, loss and samplers."""

from immiscible_policy.policy.diffusion import DiffusionPolicy, Sampler
from immiscible_policy.policy.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.policy.image import ImagePolicy, Pictured
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.unet import ConditionalUnet1d

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
