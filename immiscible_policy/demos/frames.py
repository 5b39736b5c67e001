"""The frames that an image policy is trained on: as they were recorded, or drawn anew from the recorded states.

Either way a frame is held once, as bytes, however many windows see it (25,650 frames of 96 x 96 take 709 MB).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from immiscible_envs.rendering import render_state
from immiscible_policy.demos.store import Demonstrations, Frames

SIZE = 96
"""Side of the frames that are drawn [px]."""
CAMERA = "img"
"""The camera of PushT: from above, as the environment and the published store show it."""


def stored_frames(demos: Demonstrations, cameras: Sequence[str] = (CAMERA,)) -> dict[str, Tensor]:
    """Read the recorded frames of some cameras, (T, H, W, 3) uint8 each.

    Raises:
        ValueError: If there is no such camera, or its pixels are not 0..255.
    """
    views = demos.views | ({CAMERA: demos.image} if demos.image is not None else {})
    for camera in cameras:
        if camera not in views:
            cure = "; images=rendered draws them from the states" if camera == CAMERA else ""
            has = ", ".join(f"data/{name}" for name in views) or "no camera at all"
            raise ValueError(f"{demos.path}: data/{camera} is missing, it has {has}{cure}")
    return {camera: torch.from_numpy(_bytes(demos, camera, views[camera])) for camera in cameras}


def rendered_frames(demos: Demonstrations) -> dict[str, Tensor]:
    """Draw what PushT's camera sees of the recorded states, (T, 96, 96, 3) uint8; one takes about 2 ms."""
    frames = np.empty((len(demos), SIZE, SIZE, 3), np.uint8)
    console = Console(stderr=True)
    for step in track(range(len(demos)), "drawing frames", console=console, disable=not sys.stderr.isatty()):
        frames[step] = render_state(demos.state[step], size=SIZE)
    return {CAMERA: torch.from_numpy(frames)}


def _bytes(demos: Demonstrations, camera: str, frames: Frames) -> np.ndarray:
    """All frames as bytes, read a chunk at a time.

    Raises:
        ValueError: If a pixel lies outside 0..255, or none above 1.
    """
    images, start, brightest = np.empty(frames.shape, np.uint8), 0, 0.0
    for block in frames.blocks():
        low, high = float(block.min()), float(block.max())
        if not (low >= 0 and high <= 255):  # NaN fails both
            raise ValueError(f"{demos.path}: data/{camera} holds {low:g}..{high:g}; pixels should be 0..255")
        images[start : start + len(block)] = np.rint(block)
        start, brightest = start + len(block), max(brightest, high)
    if brightest <= 1:
        raise ValueError(
            f"{demos.path}: data/{camera} holds 0..{brightest:g}; pixels should be 0..255, multiply by 255"
        )
    return images
