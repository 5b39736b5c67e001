"""LPIPS with VGG16 (Zhang et al., 2018), by the package `lpips`: the distance of two images in a network's features."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from immiscible_policy.cli import one_line
from immiscible_policy.path.consistency import Metric

SIDE = 224
"""Smaller images are enlarged to this side first, as consistency training does (Song et al., 2023, appendix C)."""


def load_lpips() -> Metric:
    """Distances (B,) of images (B, 3, H, W) in [-1, 1]; the network follows them to their device.

    Its weights never train and are not part of a state dict.

    Raises:
        ValueError: If the package, a torchvision that imports, or VGG's weights are missing.
    """
    try:
        import lpips

        network: Any = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
        raise ValueError(
            f"metric=lpips needs the package lpips and VGG16's weights, which torchvision downloads "
            f"({one_line(error)}): pip install 'immiscible-policy[lpips]', or use metric=huber"
        ) from None

    def distance(x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < SIDE:
            x, y = (interpolate(images, size=(SIDE, SIDE), mode="bilinear") for images in (x, y))
        return network.to(x.device)(x, y).flatten()

    return distance
