"""How near generated images are to real ones, by features that need no network: pixels of 8x8 averages.

The distance is not FID: it sees colours and coarse shapes, not textures or objects, and tells a model that has
learned the layout of the data from one that has not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.cli import CommandError
from immiscible_policy.image.data import load_cifar10, shrink, to_bytes, to_pixels
from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.lab.image_models import SIZE

FEATURES = "the 192 pixels of 8x8 averages"
SIDE = 8


class RealImages(NamedTuple):
    """Images that no model was trained on, and how near a set of real ones comes to them.

    Attributes:
        pixels: Test images (N, 3, 16, 16) in [-1, 1].
        statistics: Of their features.
        floor: Squared Fréchet distance of n training images to them: what n perfect samples would score.
        noise: That of n images of plain Gaussian noise, clipped to [-1, 1].
    """

    pixels: Tensor
    statistics: FeatureStatistics
    floor: float
    noise: float


def pixel_features(pixels: Tensor) -> Tensor:
    """Features (N, 192) of images (N, 3, S, S) in [-1, 1]: the pixels of their 8x8 averages."""
    return shrink(pixels, SIDE).flatten(1)


def distance_to(real: FeatureStatistics, pixels: Tensor) -> float:
    """Squared Fréchet distance of the features of images (N, 3, S, S) in [-1, 1] to real ones."""
    return frechet_distance(*feature_statistics(pixel_features(pixels)), *real)


def real_images(path: Path, n: int, generator: torch.Generator) -> RealImages:
    """Read the test images and measure the two ends of the scale for sets of n images.

    Args:
        path: CIFAR-10, as `load_cifar10` takes it.
        n: How many samples will be compared with them.
        generator: Source of the plain noise.

    Raises:
        ValueError: If the images are unusable, or n is not between 200 and the number of training images.
    """
    if n < 200:
        raise CommandError(f"n={n}: a covariance of 192 features needs 200 samples or more")
    training = to_pixels(load_cifar10(path, "train", limit=n, size=SIZE))
    if len(training) < n:
        raise CommandError(f"n={n}: {path} holds {len(training):,} training images; the floor needs n")
    pixels = to_pixels(load_cifar10(path, "test", size=SIZE))
    statistics = feature_statistics(pixel_features(pixels))
    plain = torch.randn(n, 3, SIZE, SIZE, generator=generator).clamp(-1, 1)
    return RealImages(pixels, statistics, distance_to(statistics, training), distance_to(statistics, plain))


def tiled(pixels: Tensor, columns: int) -> Tensor:
    """Images (N, 3, S, S) in [-1, 1] side by side in rows of `columns`: bytes (H, W, 3) for a picture."""
    gap = torch.nn.functional.pad(to_bytes(pixels), (1, 1, 1, 1), value=255)
    n, channels, side, _ = gap.shape
    grid = gap.reshape(n // columns, columns, channels, side, side).permute(0, 3, 1, 4, 2)
    return grid.reshape(n // columns * side, columns * side, channels)
