"""Decoded images kept between runs: 50,000 JPEGs of CIFAR-10 take seconds to decode, and a moment to read back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Shape
from immiscible_policy.image.data.listing import Listing, digest

FROM_BYTES = 2**24
"""Encoded images of fewer bytes in all are decoded anew every time: they take about a second."""
FORMAT = 1
"""Raised when the same files and shape give other pixels."""


def cached(listing: Listing, shape: Shape, decode: Callable[[], Tensor]) -> Tensor:
    """Decoded images (N, 3, S, S), uint8: what an earlier run kept of the same files, or else `decode()`, then kept.

    The same files are those of the same names, sizes and contents (of a zip), or times of modification (of a folder).
    """
    if sum(file.size for file in listing.files) < FROM_BYTES:
        return decode()
    kept = directory() / f"images-{_key(listing, shape)}.npy"
    if kept.exists():
        return torch.from_numpy(np.load(kept, allow_pickle=False))
    images = decode()
    _keep(images, kept)
    return images


def directory() -> Path:
    """Where decoded images are kept: `immiscible-policy` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "immiscible-policy"


def _key(listing: Listing, shape: Shape) -> str:
    files = (f"{file.name} {file.size} {file.stamp}" for file in listing.files)
    return digest([f"{FORMAT} {shape}", *files])[:32]


def _keep(images: Tensor, kept: Path) -> None:
    """Keep decoded images; where that cannot be, say so and do without."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _write(images, kept)
    except OSError as error:
        print(f"decoded images are not kept for the next run: {error}", file=sys.stderr)


def _write(images: Tensor, kept: Path) -> None:
    """Write a file that appears whole or not at all."""
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.save(file, images.numpy())
            file.flush()
            os.fsync(file.fileno())
        part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
