"""LPIPS with VGG16 (Zhang et al., 2018): the distance of two images in the features of a network, for `metric=lpips`.

The weights are a file of the user's: the state dict of the `lpips` package's `LPIPS(net="vgg")`, saved by
`torch.save(lpips.LPIPS(net="vgg").state_dict(), "lpips_vgg.pt")` or with safetensors. Loading it executes no code.

Shape legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Places of VGG16's convolutions among its layers; a maximum over 2x2 pixels before every group but the first."""
SIDE = 224
"""Smaller images are enlarged to this side first, as consistency training does (Song et al., 2023, appendix C)."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What the pixels of each colour in [-1, 1] are reduced by, then divided by."""


def load_lpips(path: Path | str) -> Lpips:
    """Read LPIPS weights, executing no code.

    Args:
        path: A `.safetensors` file, or one of `torch.save`.

    Raises:
        ValueError: If the file is missing, is no state dict, holds more than tensors, or is not of VGG LPIPS.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"lpips={path} is missing; it is the state dict of lpips.LPIPS(net='vgg'), saved to a file")
    weights = _read(path)
    found = weights if isinstance(weights, dict) else {}
    missing = [name for name in _names() if not isinstance(found.get(name), Tensor)]
    if missing:
        raise ValueError(f"lpips={path} lacks {missing[0]} of lpips.LPIPS(net='vgg').state_dict(); save that one")
    return Lpips(found)


def _read(path: Path) -> object:
    """What a file holds: `torch.save` writes a zip archive, of which only tensors and plain containers are read."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError):
        pass
    raise ValueError(f"lpips={path} is no file of plain tensors; save the state dict of lpips.LPIPS(net='vgg')")


class Lpips(nn.Module):
    """Weighted squared distance of normalised VGG16 features, averaged over pixels and added up over five depths.

    Its weights never train and are no part of a state dict.

    Args:
        weights: By the names of the `lpips` package; widths are free.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in _names():
            self.register_buffer(name.replace(".", "_"), weights[name].float(), persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-1, 1]."""
        distance = torch.zeros(len(x), device=x.device)
        for depth, (a, b) in enumerate(zip(self._features(x), self._features(y), strict=True)):
            weighted = functional.conv2d((a - b).square(), self._weight(f"lin{depth}.model.1.weight"))
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance

    def _features(self, x: Tensor) -> list[Tensor]:
        """Features of each depth (B, C, H, W), of length 1 at every pixel."""
        if min(x.shape[-2:]) < SIDE:
            x = functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear")
        x = (x - self.shift) / self.scale
        found = []
        for depth, places in enumerate(CONVOLUTIONS):
            x = x if depth == 0 else functional.max_pool2d(x, 2)
            for place in places:
                layer = f"net.slice{depth + 1}.{place}"
                x = functional.conv2d(x, self._weight(f"{layer}.weight"), self._weight(f"{layer}.bias"), padding=1)
                x = x.relu()
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))


def _names() -> list[str]:
    """All weights that are needed, by the names of the `lpips` package."""
    layers = [f"net.slice{depth}.{place}" for depth, places in enumerate(CONVOLUTIONS, 1) for place in places]
    linear = [f"lin{depth}.model.1.weight" for depth in range(len(CONVOLUTIONS))]
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")] + linear
