"""The diffusion policy: a 1-D temporal U-Net denoiser, its normalisation, its loss and its samplers."""

from immiscible_policy.policy.diffusion import DiffusionPolicy, Sampler
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.unet import ConditionalUnet1d

__all__ = ["ConditionalUnet1d", "DiffusionPolicy", "Normalizer", "Sampler"]
