"""What Stable Diffusion takes ready-made and leaves as it is: autoencoder and text encoder.

Neither is a `torch.nn.Module`, so that a model may hold them without training or saving them. Arithmetic is `fp32`, or
`bf16` over float32 weights.

Shape legend: B images or prompts, S pixels along a side, C x H x W numbers of a latent (4 x S/8 x S/8), L tokens (77),
E numbers per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from immiscible_policy.image.model import Text, require_scale
from immiscible_policy.noise.inputs import draw

IMAGES = 32
"""Images encoded or decoded at a time; at 256 x 256 pixels each takes 0.16 GB on the way (measured, float32, CPU)."""
PROMPTS = 256
"""Prompts that are encoded at a time."""


class Latents:
    """Encodes pixels into what is diffused, x = z * scaling_factor * data_scale, and decodes it.

    z is drawn from the autoencoder's posterior N(mean, std^2); `scaling_factor` is the autoencoder's own, which brings
    natural images to a standard deviation of about 1 (Rombach et al., 2022, appendix G).
    ValueError if data_scale is not positive.
    """

    limit = math.inf  # latents have no bounds

    def __init__(self, vae: AutoencoderKL, size: int, *, data_scale: float, precision: str) -> None:
        require_scale(data_scale)
        self.vae = vae.eval().requires_grad_(False)
        self.frozen = (self.vae,)
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
            posteriors = [self.vae.encode(part).latent_dist for part in pixels.split(IMAGES)]
        mean, std = (torch.cat([getattr(part, name).float() for part in posteriors]) for name in ("mean", "std"))
        return self.scale * (mean + std * draw(mean, generator))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), clipped to [-1, 1], of what is diffused (B, C, H, W)."""
        with self._arithmetic():
            parts = [self.vae.decode(part / self.scale).sample for part in x.split(IMAGES)]
        return torch.cat(parts).float().clamp(-1, 1)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class ClipText:
    """Embeds prompts as Stable Diffusion does: padded or cut to L tokens, the last layer's states."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, *, precision: str) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self.frozen = (self.encoder,)
        self.precision = precision
        self._tokens([""])  # fixes padding and length; later calls change nothing in it, whatever thread they come from

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Embed prompts, each distinct one once; float32, on the encoder's device."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        parts = [self._encode(part) for part in self._tokens(list(distinct)).split(PROMPTS)]
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.encoder.device)
        return Text(*(torch.cat(field)[rows] for field in zip(*parts, strict=True)))

    def _tokens(self, prompts: list[str]) -> Tensor:
        """Token numbers (B, L)."""
        length = self.encoder.config.max_position_embeddings
        return self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def _encode(self, tokens: Tensor) -> Text:
        device = self.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.encoder(tokens.to(device))
        return Text(states.last_hidden_state.float(), states.pooler_output.float())
