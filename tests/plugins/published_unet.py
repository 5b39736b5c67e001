"""The published conditional U-Net, written plainly after its description and with its names, for parity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Sinusoid(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.half = dim // 2

    def forward(self, t: Tensor) -> Tensor:
        rate = torch.exp(torch.arange(self.half) * -(math.log(10000) / (self.half - 1)))
        return torch.cat([(t[:, None] * rate).sin(), (t[:, None] * rate).cos()], dim=-1)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(8, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(inputs, outputs, kernel), Block(outputs, outputs, kernel)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, bias = self.cond_encoder(condition).unflatten(1, (2, -1)).unbind(1)
        return self.blocks[1](scale[..., None] * self.blocks[0](x) + bias[..., None]) + self.residual_conv(x)


class Resample(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PublishedUnet(nn.Module):
    """Down to the deepest level, two blocks there, and up again to the second."""

    def __init__(self, action: int, condition: int, step: int, dims: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        self.diffusion_step_encoder = nn.Sequential(
            Sinusoid(step), nn.Linear(step, 4 * step), nn.Mish(), nn.Linear(4 * step, step)
        )
        sizes = list(zip([action, *dims[:-1]], dims, strict=True))

        def pair(inputs: int, outputs: int) -> list[nn.Module]:
            return [
                Residual(inputs, outputs, step + condition, kernel),
                Residual(outputs, outputs, step + condition, kernel),
            ]

        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for level, (inputs, outputs) in enumerate(sizes):
            last = level == len(sizes) - 1
            shrink = nn.Identity() if last else Resample(nn.Conv1d(outputs, outputs, 3, 2, 1))
            self.down_modules.append(nn.ModuleList([*pair(inputs, outputs), shrink]))
        self.mid_modules = nn.ModuleList(pair(dims[-1], dims[-1]))
        for inputs, outputs in reversed(sizes[1:]):
            grow = Resample(nn.ConvTranspose1d(inputs, inputs, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([*pair(2 * outputs, inputs), grow]))
        self.final_conv = nn.Sequential(Block(dims[0], dims[0], kernel), nn.Conv1d(dims[0], action, 1))

    def forward(self, sample: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        c = torch.cat([self.diffusion_step_encoder(t), condition], dim=-1)
        x, skips = sample.transpose(1, 2), []
        for first, second, shrink in self.down_modules:
            x = second(first(x, c), c)
            skips.append(x)
            x = shrink(x)
        for middle in self.mid_modules:
            x = middle(x, c)
        for first, second, grow in self.up_modules:
            x = grow(second(first(torch.cat([x, skips.pop()], dim=1), c), c))
        return self.final_conv(x).transpose(1, 2)
