"""Small image folders for tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from immiscible_policy.image.data import load_images


def load_cifar10(path: Path, split: str = "train", **options: int | None) -> torch.Tensor:
    """The pixels of CIFAR-10 (N, 3, S, S), uint8; arguments and errors as `load_images`."""
    images = load_images("cifar10", path, split=split, **options)
    return images.pixels(torch.arange(len(images)))


def write_images(root: Path, split: str, per_class: int, classes: tuple[str, ...] = ("bird", "cat")) -> np.ndarray:
    """Write random 32x32 images root/split/CLASS/NNNN.png; return them (N, 3, 32, 32), the classes in turn."""
    rng = np.random.default_rng(len(split))
    images = rng.integers(0, 256, (per_class, len(classes), 32, 32, 3), np.uint8)
    for number, row in enumerate(images):
        for name, pixels in zip(classes, row, strict=True):
            write_image(root / split / name / f"{number:04d}.png", pixels)
    return images.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3), or (H, W) for grayscale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
