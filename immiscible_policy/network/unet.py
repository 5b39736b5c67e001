"""The conditional 1-D temporal U-Net that denoises action chunks (Diffusion Policy, RSS 2023; Janner et al., 2022).

Module names follow the published architecture, so that its weights load here and ours load there.

Shape legend: B samples, T steps of the chunk, A action dimensions, C channels, G features of the observation.

```
 actions (B, T, A)          step t (B,)   features (B, G)
      |                          |              |
      |                     sinusoid, MLP       |
      |                          +---- concat --+----> FiLM of every residual block
  down 0 (T)   ------------------------------------ skip (dropped, as published)
  down 1 (T/2) ---------------------- skip ---+
  down 2 (T/4) ------------- skip --+         |
  middle x2 (T/4)                   |         |
  up 0 (T/4 -> T/2) <---------------+         |
  up 1 (T/2 -> T)   <-------------------------+
  final convolution -> prediction (B, T, A)
```
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

KERNELS = ("fused", "plain")


class ConditionalUnet1d(nn.Module):
    """Predicts what the path asks for, such as the noise, from an action chunk, its step and the observation.

    Args:
        action_dim: A, numbers per action.
        feature_dim: G, numbers that describe the observations.
        step_embed_dim: Size of the diffusion-step embedding.
        down_dims: Channels at each resolution; the chunk is halved between them.
        kernel_size: Width of the temporal convolutions, odd.
        groups: Groups of the normalisation; divides every entry of `down_dims`.
        kernels: `fused` (see `network.fused`) or `plain`. Fused is for the CPU, float32 weights, and arithmetic in
            float32 or bfloat16; everything else is done plainly. Weights and their names are the same.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    def __init__(
        self,
        action_dim: int,
        feature_dim: int,
        step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        groups: int = 8,
        kernels: str = "fused",
    ) -> None:
        super().__init__()
        if kernels not in KERNELS:
            raise ValueError(f"kernels={kernels}: choose from {', '.join(KERNELS)}")
        if groups < 1:
            raise ValueError(f"groups={groups}: needs 1 or more")
        if not down_dims or any(dim < 1 or dim % groups for dim in down_dims):
            raise ValueError(f"down_dims={list(down_dims)}: needs positive entries that divide by groups={groups}")
        if step_embed_dim < 4 or step_embed_dim % 2:
            raise ValueError(f"step_embed_dim={step_embed_dim}: needs an even number, 4 or more")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: needs an odd number")
        self.kernels = kernels
        self.down_factor = 2 ** (len(down_dims) - 1)
        self.step_embed_dim = step_embed_dim
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(step_embed_dim),
            nn.Linear(step_embed_dim, 4 * step_embed_dim),
            nn.Mish(),
            nn.Linear(4 * step_embed_dim, step_embed_dim),
        )

        def block(inputs: int, outputs: int) -> FilmResidualBlock:
            return FilmResidualBlock(inputs, outputs, step_embed_dim + feature_dim, kernel_size, groups)

        sizes = [action_dim, *down_dims]
        levels = list(zip(sizes[:-1], sizes[1:], strict=True))
        deepest = down_dims[-1]
        self.down_modules = nn.ModuleList(
            nn.ModuleList([block(i, o), block(o, o), downsample(o)]) for i, o in levels[:-1]
        )
        self.down_modules.append(nn.ModuleList([block(*levels[-1]), block(deepest, deepest), nn.Identity()]))
        self.mid_modules = nn.ModuleList([block(deepest, deepest), block(deepest, deepest)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * o, i), block(i, i), upsample(i)]) for i, o in reversed(levels[1:])
        )
        first = down_dims[0]
        self.final_conv = nn.Sequential(conv_block(first, first, kernel_size, groups), nn.Conv1d(first, action_dim, 1))

    def forward(self, sample: Tensor, step: Tensor, features: Tensor) -> Tensor:
        """Predict what the path asks for (B, T, A) of chunks (B, T, A) at steps (B,), given observations (B, G).

        Raises ValueError if T does not divide by 2 ** (len(down_dims) - 1).
        """
        self._check_horizon(sample.shape[1])
        if (dtype := self._fused_dtype(sample)) is not None:
            from immiscible_policy.network import fused  # compiles, or reads what it compiled before

            return fused.forward(self, sample, step, features, dtype)
        film = torch.cat([self.diffusion_step_encoder(step), features], dim=-1)
        return self._denoise(sample, [block.cond_encoder(film) for block in self.blocks()])

    def predictor(self, steps: Tensor, features: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Prepare many predictions for the same features: everything that the sample does not enter is computed now.

        The features enter a residual block through `Linear(Mish([step embedding, features]))`. Mish acts number by
        number, so that this is a part of the step, the same for all rows, plus a part of the features, the same for
        all steps.

        Returns:
            A function of i and noisy action chunks (B, T, A) that predicts at steps[i] what `forward` does (B, T, A);
            steps (S,) are for all rows of the features (B, G).
        """
        blocks = self.blocks()
        linears = [cast(nn.Linear, block.cond_encoder[1]) for block in blocks]
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        step_weight, feature_weight = weight.split([self.step_embed_dim, features.shape[1]], dim=1)
        activation, sizes = blocks[0].cond_encoder[0], [linear.out_features for linear in linears]
        embedded = activation(self.diffusion_step_encoder(steps))
        step_films = nn.functional.linear(embedded, step_weight, bias)  # (S, films)
        feature_films = nn.functional.linear(activation(features), feature_weight)  # (B, films)

        denoise = self._denoiser(features, sizes)

        def predict(i: int, sample: Tensor) -> Tensor:
            self._check_horizon(sample.shape[1])
            return denoise(sample, step_films[i] + feature_films)

        return predict

    def _denoiser(self, features: Tensor, sizes: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """`_denoise` for films that lie side by side (B, F), so many numbers of each block."""
        dtype = None if torch.is_grad_enabled() else self._fused_dtype(features)
        if dtype is None:
            return lambda sample, films: self._denoise(sample, films.split(sizes, dim=1))
        from immiscible_policy.network import fused

        return fused.denoiser(self, dtype)

    def _denoise(self, sample: Tensor, films: Iterable[Tensor]) -> Tensor:
        """`forward` for chunks (B, T, A), given scale and bias (B, 2 C) of each of `blocks`."""
        film = iter(films)
        x = sample.transpose(1, 2)  # (B, A, T)
        skips = []
        for first, second, shrink in _triples(self.down_modules):
            x = second(first(x, next(film)), next(film))
            skips.append(x)
            x = shrink(x)
        for middle in self.mid_modules:
            x = middle(x, next(film))
        for first, second, grow in _triples(self.up_modules):
            x = torch.cat([x, skips.pop()], dim=1)
            x = grow(second(first(x, next(film)), next(film)))
        return self.final_conv(x).transpose(1, 2)  # (B, T, A)

    def _check_horizon(self, steps: int) -> None:
        if steps % self.down_factor:
            need = f"{self.down_factor}, as this U-Net's depth needs"
            raise ValueError(f"horizon={steps} does not divide by {need}")

    def _fused_dtype(self, x: Tensor) -> torch.dtype | None:
        """The type of the fused kernels' arithmetic, or None where the plain ones have to do."""
        if self.kernels == "plain" or x.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if find_spec("numba") is None:
            return None
        if torch._C._functorch.maybe_current_level() is not None:  # vmap or grad: tensors without an address
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16):
            return None
        parameters = list(parameters_of(self))  # which the kernels know by their addresses
        apart = len({parameter.data_ptr() for parameter in parameters}) == len(parameters)
        plain = all(p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
        return dtype if apart and plain else None

    def blocks(self) -> list[FilmResidualBlock]:
        """The residual blocks, in the order in which a sample meets them."""
        down = [block for first, second, _ in _triples(self.down_modules) for block in (first, second)]
        up = [block for first, second, _ in _triples(self.up_modules) for block in (first, second)]
        return cast(list[FilmResidualBlock], [*down, *self.mid_modules, *up])


class FilmResidualBlock(nn.Module):
    """Two convolutions with a residual path; the features scale and shift what lies between them (FiLM).

    `cond_encoder` makes the scales and shifts from the step's embedding and the features (B, film_dim).
    """

    def __init__(self, inputs: int, outputs: int, film_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        widths = (inputs, outputs)
        self.blocks = nn.ModuleList(conv_block(width, outputs, kernel_size, groups) for width in widths)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(film_dim, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map x (B, inputs, T) to (B, outputs, T) with scales and shifts film (B, 2 * outputs)."""
        scale, bias = film.unsqueeze(-1).chunk(2, dim=1)  # (B, outputs, 1) each
        hidden = torch.addcmul(bias, scale, self.blocks[0](x))
        return self.blocks[1](hidden) + self.residual_conv(x)


def conv_block(inputs: int, outputs: int, kernel_size: int, groups: int) -> nn.Module:
    """Convolution, group normalisation, Mish: (B, inputs, T) to (B, outputs, T)."""
    conv = nn.Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(OrderedDict(block=nn.Sequential(conv, nn.GroupNorm(groups, outputs), nn.Mish())))


def downsample(channels: int) -> nn.Module:
    """Halve the number of steps: (B, C, T) to (B, C, T/2)."""
    return nn.Sequential(OrderedDict(conv=nn.Conv1d(channels, channels, 3, stride=2, padding=1)))


def upsample(channels: int) -> nn.Module:
    """Double the number of steps: (B, C, T) to (B, C, 2T)."""
    return nn.Sequential(OrderedDict(conv=nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)))


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


def parameters_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """`module.parameters()` without the names, which take it most of its time, and with those that it has twice."""
    yield from (parameter for parameter in module._parameters.values() if parameter is not None)
    for child in module._modules.values():
        if child is not None:
            yield from parameters_of(child)


def _triples(modules: nn.ModuleList) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    return [cast(tuple[nn.Module, nn.Module, nn.Module], tuple(cast(nn.ModuleList, level))) for level in modules]
