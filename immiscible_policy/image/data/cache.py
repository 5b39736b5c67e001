"""Decoded images kept between runs: 50,000 JPEGs of CIFAR-10 take seconds to decode, and a moment to read back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Decoder
from immiscible_policy.image.data.listing import digest

FROM_BYTES = 2**24
"""Encoded images of fewer bytes in all are decoded anew every time: they take about a second."""
FORMAT = 1
"""Raised when the same files and shape give other pixels."""


def cached(decoder: Decoder) -> Tensor:
    """Decoded images (N, 3, S, S), uint8: what an earlier run kept of the same files, or decoded now and kept.

    The same files are those of the same names, sizes and contents (of a zip), or times of modification (of a folder).
    They are kept in `immiscible-policy` of the user's cache directory.
    """
    files = decoder.listing.files
    if sum(file.size for file in files) < FROM_BYTES:
        return decoder.all()
    key = digest([f"{FORMAT} {decoder.shape}", *(f"{file.name} {file.size} {file.stamp}" for file in files)])
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kept = Path(home) / "immiscible-policy" / f"images-{key[:32]}.npy"
    if kept.exists():
        return torch.from_numpy(np.load(kept, allow_pickle=False))
    images, part = decoder.all(), kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:  # too large to be held twice, as `write_atomically` would
            np.save(file, images.numpy())
            os.fsync(file.fileno())
        part.replace(kept)
    except OSError as error:
        print(f"decoded images are not kept for the next run: {error}", file=sys.stderr)
        if part.is_file():
            part.unlink()
    return images
