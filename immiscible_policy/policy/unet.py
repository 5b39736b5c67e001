"""The conditional 1-D temporal U-Net that denoises action chunks (Diffusion Policy, RSS 2023; Janner et al., 2022).

Module names follow the published architecture, so that its weights load here and ours load there.

Shape legend: B samples, T steps of the chunk, A action dimensions, C channels, G condition numbers.

```
 actions (B, T, A)          step t (B,)   condition (B, G)
      |                          |              |
      |                     sinusoid, MLP       |
      |                          +---- concat --+----> FiLM of every residual block
  down 0 (T)   ------------------------------------ skip (dropped, as published)
  down 1 (T/2) ---------------------- skip ---+
  down 2 (T/4) ------------- skip --+         |
  middle x2 (T/4)                   |         |
  up 0 (T/4 -> T/2) <---------------+         |
  up 1 (T/2 -> T)   <-------------------------+
  final convolution -> noise (B, T, A)
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class ConditionalUnet1d(nn.Module):
    """Predicts the noise in an action chunk from the chunk, the diffusion step and the observation.

    Args:
        action_dim: A, numbers per action.
        condition_dim: G, numbers in the flattened observation.
        step_embed_dim: Size of the diffusion-step embedding.
        down_dims: Channels at each resolution; the chunk is halved between them.
        kernel_size: Of the temporal convolutions, odd.
        groups: Of the group normalisation; divides every entry of `down_dims`.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        groups: int = 8,
    ) -> None:
        super().__init__()
        _check_sizes(step_embed_dim, down_dims, kernel_size, groups)
        self.down_factor = 2 ** (len(down_dims) - 1)
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(step_embed_dim),
            nn.Linear(step_embed_dim, 4 * step_embed_dim),
            nn.Mish(),
            nn.Linear(4 * step_embed_dim, step_embed_dim),
        )

        def block(inputs: int, outputs: int) -> FilmResidualBlock:
            return FilmResidualBlock(inputs, outputs, step_embed_dim + condition_dim, kernel_size, groups)

        sizes = [action_dim, *down_dims]
        levels = list(zip(sizes[:-1], sizes[1:], strict=True))
        deepest = down_dims[-1]
        self.down_modules = nn.ModuleList(
            nn.ModuleList([block(i, o), block(o, o), Downsample(o)]) for i, o in levels[:-1]
        )
        self.down_modules.append(nn.ModuleList([block(*levels[-1]), block(deepest, deepest), nn.Identity()]))
        self.mid_modules = nn.ModuleList([block(deepest, deepest), block(deepest, deepest)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * o, i), block(i, i), Upsample(i)]) for i, o in reversed(levels[1:])
        )
        first = down_dims[0]
        self.final_conv = nn.Sequential(ConvBlock(first, first, kernel_size, groups), nn.Conv1d(first, action_dim, 1))

    def forward(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            sample: Noisy action chunks (B, T, A); T divisible by 2 ** (len(down_dims) - 1).
            step: Diffusion steps (B,), integers.
            condition: Flattened observations (B, G).

        Returns:
            Predicted noise (B, T, A).

        Raises:
            ValueError: If T does not divide.
        """
        if sample.shape[1] % self.down_factor:
            raise ValueError(
                f"horizon={sample.shape[1]} does not divide by {self.down_factor}, as this U-Net's depth needs"
            )
        film = torch.cat([self.diffusion_step_encoder(step), condition], dim=-1)
        x = sample.transpose(1, 2)  # (B, A, T)
        skips = []
        for first, second, shrink in _triples(self.down_modules):
            x = second(first(x, film), film)
            skips.append(x)
            x = shrink(x)
        for middle in self.mid_modules:
            x = middle(x, film)
        for first, second, grow in _triples(self.up_modules):
            x = torch.cat([x, skips.pop()], dim=1)
            x = grow(second(first(x, film), film))
        return self.final_conv(x).transpose(1, 2)  # (B, T, A)


class FilmResidualBlock(nn.Module):
    """Two convolutions with a residual path; the condition scales and shifts what lies between them (FiLM)."""

    def __init__(self, inputs: int, outputs: int, film_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                ConvBlock(inputs, outputs, kernel_size, groups),
                ConvBlock(outputs, outputs, kernel_size, groups),
            ]
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(film_dim, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map x (B, inputs, T) to (B, outputs, T) under the condition film (B, film_dim)."""
        scale, bias = self.cond_encoder(film).unsqueeze(-1).chunk(2, dim=1)  # (B, outputs, 1) each
        hidden = scale * self.blocks[0](x) + bias
        return self.blocks[1](hidden) + self.residual_conv(x)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(groups, outputs),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, inputs, T) to (B, outputs, T)."""
        return self.block(x)


class Downsample(nn.Module):
    """Halve the number of steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, T) to (B, C, T/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double the number of steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, T) to (B, C, 2T)."""
        return self.conv(x)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a diffusion step at geometric frequencies from 1 to 1/10000 (Vaswani et al., 2017)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, step: Tensor) -> Tensor:
        """Map steps (B,) to embeddings (B, dim)."""
        half = self.dim // 2
        exponent = torch.arange(half, device=step.device, dtype=torch.float32) / (half - 1)
        angles = step.float()[:, None] * torch.exp(-math.log(10_000) * exponent)  # (B, half)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _triples(modules: nn.ModuleList) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    return [cast(tuple[nn.Module, nn.Module, nn.Module], tuple(cast(nn.ModuleList, level))) for level in modules]


def _check_sizes(step_embed_dim: int, down_dims: Sequence[int], kernel_size: int, groups: int) -> None:
    if groups < 1:
        raise ValueError(f"groups={groups}: needs 1 or more")
    if not down_dims or any(dim < 1 or dim % groups for dim in down_dims):
        raise ValueError(f"down_dims={list(down_dims)}: needs positive entries that divide by groups={groups}")
    if step_embed_dim < 4 or step_embed_dim % 2:
        raise ValueError(f"step_embed_dim={step_embed_dim}: needs an even number, 4 or more")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size}: needs an odd number")
