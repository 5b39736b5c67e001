"""Pixels to latents and back: Stable Diffusion's autoencoder, frozen.

Shape legend: B images, S pixels along a side, C x H x W numbers of a latent (4 x S/8 x S/8).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from immiscible_policy.image.model import require_scale
from immiscible_policy.noise.inputs import draw

CHUNK = 32
"""Images encoded or decoded at a time; at 256 x 256 pixels each takes 0.16 GB on the way (measured, float32, CPU)."""


class Latents:
    """Encodes pixels into what is diffused, x = z * scaling_factor * data_scale, and decodes it.

    z is drawn from the autoencoder's posterior N(mean, std^2); `scaling_factor` is the autoencoder's own, which brings
    natural images to a standard deviation of about 1 (Rombach et al., 2022, appendix G).

    It is not a `torch.nn.Module`, so that a model may hold it without training or saving it.

    Raises:
        ValueError: If data_scale is not positive.
    """

    limit = math.inf  # latents have no bounds

    def __init__(self, vae: AutoencoderKL, size: int, *, data_scale: float, precision: str) -> None:
        require_scale(data_scale)
        self.vae = vae.eval().requires_grad_(False)
        self.size, self.data_scale, self.precision = size, data_scale, precision
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)  # pixels per number along a side
        self.shape = (vae.config["latent_channels"], size // self.factor, size // self.factor)

    @property
    def scale(self) -> float:
        """What z is multiplied by before it is diffused."""
        return self.vae.config["scaling_factor"] * self.data_scale

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What is diffused (B, C, H, W), float32, for pixels (B, 3, S, S) in [-1, 1]; draws from the posterior."""
        with self._arithmetic():
            posteriors = [self.vae.encode(part).latent_dist for part in pixels.split(CHUNK)]
        mean, std = (torch.cat([getattr(part, name).float() for part in posteriors]) for name in ("mean", "std"))
        return self.scale * (mean + std * draw(mean, generator))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), clipped to [-1, 1], of what is diffused (B, C, H, W)."""
        with self._arithmetic():
            parts = [self.vae.decode(part / self.scale).sample for part in x.split(CHUNK)]
        return torch.cat(parts).float().clamp(-1, 1)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply what moves a module's tensors, as `torch.nn.Module.to` does."""
        self.vae._apply(change)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.precision == "bf16")
