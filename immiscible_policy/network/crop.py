"""Camera frames scaled to one size, and crops of them: at random places in training, in the middle in evaluation.

A random crop leaves each frame out of view by up to `H - size` pixels, so that the network learns where things are
from the picture and not from its borders. Every frame of a window has a place of its own, as Diffusion Policy has it
(Chi et al., RSS 2023); places are uniform over all that fit, so that the middle is their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale images (..., H, W, C) to a height and width, bilinearly and antialiased.

    Those of that size stay as they are. Bytes stay bytes, other numbers become float32.
    """
    if tuple(images.shape[-3:-1]) == size:
        return images
    planes = images.reshape(-1, *images.shape[-3:]).movedim(-1, 1)  # (N, C, H, W)
    planes = planes if images.dtype == torch.uint8 else planes.float()
    scaled = interpolate(planes, size, mode="bilinear", antialias=True)
    return scaled.movedim(1, -1).reshape(*images.shape[:-3], *size, -1)


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
