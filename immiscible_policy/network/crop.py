"""Crops of camera frames: at random places in training, in the middle in evaluation.

A random crop leaves each frame out of view by up to `H - size` pixels, so that the network learns where things are
from the picture and not from its borders. Every frame of a window has a place of its own, as Diffusion Policy has it
(Chi et al., RSS 2023); places are uniform over all that fit, so that the middle is their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_crop(frames: Tensor, step: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Gather a camera's frames (T, H, W, C) at steps (...), int64, and cut a square (..., size, size, C) out of each.

    The side of the squares [px] is at most H and W; steps and frames are on one device.
    """
    height, width = frames.shape[1:3]

    def reach(room: int) -> Tensor:
        corner = torch.randint(room + 1, step.shape, generator=generator, device=generator.device)
        return corner.to(frames.device).unsqueeze(-1) + torch.arange(size, device=frames.device)  # (..., size)

    rows, columns = reach(height - size), reach(width - size)
    return frames[step[..., None, None], rows[..., :, None], columns[..., None, :]]


def center_crop(images: Tensor, size: int) -> Tensor:
    """The square (..., size, size, C) in the middle of images (..., H, W, C); those of that size stay as they are."""
    top, left = ((side - size) // 2 for side in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]
