"""Between bytes and pixels in [-1, 1], and from one side to another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def to_pixels(images: Tensor) -> Tensor:
    """Bytes 0..255 to floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Floats to bytes, the inverse of `to_pixels`; what lies outside [-1, 1] is clipped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def shrink(images: Tensor, size: int) -> Tensor:
    """Average bytes (N, C, S, S) over blocks to (N, C, size, size), rounded; ValueError if size does not divide S."""
    side = images.shape[-1]
    require_divisor(size, side)
    if size == side:
        return images
    parts = [avg_pool2d(part.float(), side // size).round().to(torch.uint8) for part in images.split(4096)]
    return torch.cat(parts)


def enlarge(images: Tensor, size: int) -> Tensor:
    """Images (N, C, S, S), uint8, to (N, C, size, size) by bicubic interpolation, rounded and clipped to bytes."""
    if size == images.shape[-1]:
        return images
    larger = interpolate(images.float(), size=(size, size), mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).to(torch.uint8)


def require_divisor(size: int, side: int) -> None:
    """Refuse a size that blocks of pixels cannot be averaged to; ValueError if it does not divide the side."""
    if size < 1 or side % size:
        raise ValueError(f"size={size}: averaging needs a side that divides {side}")
