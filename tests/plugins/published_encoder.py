"""The published network of a camera, written plainly after its description and with its names, for parity.

robomimic's visual core, as Diffusion Policy's hybrid image policy makes it: ResNet-18 with group normalisation, a
1x1 convolution to 32 maps, their mean places under a softmax, a linear layer, ReLU. Its first two parts have two names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Backbone(nn.Module):
    """A ResNet-18 without its last two layers, numbered."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        sizes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.nets = nn.Sequential(*stem, *(nn.Sequential(Basic(i, o, s), Basic(o, o, 1)) for i, o, s in sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.nets(x)


class Pool(nn.Module):
    """Mean places of 32 maps."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(512, 32, 1)
        line = torch.linspace(-1, 1, side)
        self.register_buffer("temperature", torch.ones(1))
        self.register_buffer("pos_x", line.repeat(side)[None])
        self.register_buffer("pos_y", line.repeat_interleave(side)[None])

    def forward(self, x: Tensor) -> Tensor:
        share = (self.nets(x).flatten(2) / self.temperature).softmax(dim=-1)
        return torch.stack([(share * self.pos_x).sum(-1), (share * self.pos_y).sum(-1)], dim=-1)


class Camera(nn.Module):
    def __init__(self, crop: int) -> None:
        super().__init__()
        self.crop = crop
        self.backbone, self.pool = Backbone(), Pool(-(-crop // 32))
        self.nets = nn.Sequential(self.backbone, self.pool, nn.Flatten(), nn.Linear(64, 64))

    def forward(self, picture: Tensor) -> Tensor:
        edge = (picture.shape[-1] - self.crop) // 2
        inner = slice(edge, edge + self.crop)
        return self.nets(picture[..., inner, inner]).relu()


class PublishedEncoder(nn.Module):
    """Features of a camera and the agent's position, in the order in which they are named.

    Args:
        crop: Side of the square that is seen [px].
        order: Names of the observations; the camera is `image`.
    """

    def __init__(self, crop: int, order: tuple[str, str]) -> None:
        super().__init__()
        self.order = order
        self.obs_nets = nn.ModuleDict({"image": Camera(crop)})

    def forward(self, observed: dict[str, Tensor]) -> Tensor:
        """Map normalised observations (N, 3, 96, 96) and (N, 2) to features (N, 66)."""
        seen = observed | {"image": self.obs_nets["image"](observed["image"])}
        return torch.cat([seen[name] for name in self.order], dim=-1)
