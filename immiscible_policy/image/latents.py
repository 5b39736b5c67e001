"""Pixels to latents and back: Stable Diffusion's autoencoder, frozen.

Shape legend: B images, S pixels along a side, C x H x W numbers of a latent (4 x S/8 x S/8).
"""

from __future__ import annotations

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

    It is no `torch.nn.Module`, so that a model may hold it without training or saving it.

    Args:
        vae: The autoencoder.
        data_scale: Further factor.
        precision: `fp32`, or `bf16` for arithmetic in bfloat16 over float32 weights.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(self, vae: AutoencoderKL, *, data_scale: float = 1.0, precision: str = "fp32") -> None:
        require_scale(data_scale)
        self.vae = vae.eval().requires_grad_(False)
        self.data_scale = data_scale
        self.precision = precision

    @property
    def channels(self) -> int:
        """Channels C of a latent."""
        return self.vae.config["latent_channels"]

    @property
    def factor(self) -> int:
        """Pixels along a side for each number of a latent along a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def scale(self) -> float:
        """What z is multiplied by before it is diffused."""
        return self.vae.config["scaling_factor"] * self.data_scale

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What is diffused (B, C, H, W), float32, for pixels (B, 3, S, S) in [-1, 1]; draws from the posterior."""
        with self._arithmetic():
            found = [self.vae.encode(part).latent_dist for part in pixels.split(CHUNK)]
        mean = torch.cat([part.mean.float() for part in found])
        std = torch.cat([part.std.float() for part in found])
        return self.scale * (mean + std * draw(mean, generator))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), clipped to [-1, 1], of what is diffused (B, C, H, W)."""
        with self._arithmetic():
            found = [self.vae.decode(part / self.scale).sample for part in x.split(CHUNK)]
        return torch.cat(found).float().clamp(-1, 1)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply what moves a module's tensors, as `torch.nn.Module.to` does."""
        self.vae._apply(change)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.precision == "bf16")
