"""From encoded images to pixels of one size, which are kept between runs."""

from __future__ import annotations

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from immiscible_policy.image.data.files import Listing, digest

THREADS = min(16, os.cpu_count() or 1)
SHARE = 16  # Images that a thread decodes in one go
CHUNK = 1024  # Images that are decoded between two looks at the progress
FROM_BYTES = 2**24  # Encoded images of fewer bytes in all are decoded anew every time: they take about a second
FORMAT = 1  # Raised when the same files and shape give other pixels


@dataclass(frozen=True)
class Shape:
    """What becomes of an image.

    Images are shown upright, as their EXIF orientation says. The largest square in the middle is cut out (of an odd
    rest, the smaller half lies left or above) and resized to S x S with an antialiased bicubic filter. A JPEG whose
    shorter side is at least 4 S is halved (or quartered, ...) while it is decoded, to no less than 2 S. Unless images
    must be RGB, grayscale, palette and CMYK images are converted, and transparency is dropped.
    """

    size: int  # side S of the result [px]
    exact: tuple[int, int] | None = None  # width and height that every image must have; None takes any
    rgb: bool = False  # whether an image must be RGB


class Decoder:
    """Decodes images of a listing in a few threads; safe to call from several others, and to send to processes."""

    def __init__(self, listing: Listing, shape: Shape) -> None:
        self.listing, self.shape = listing, shape
        self._pool = ThreadPoolExecutor(THREADS, "decode")

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self.listing, self.shape)

    def __len__(self) -> int:
        return len(self.listing.files)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Images (B, 3, S, S), uint8; raises ValueError if one cannot be read or is not what the shape demands."""
        images = np.empty((len(rows), self.shape.size, self.shape.size, 3), np.uint8)

        def decode(start: int) -> None:
            for place, row in enumerate(rows[start : start + SHARE], start):
                images[place] = self._one(row)

        list(self._pool.map(decode, range(0, len(rows), SHARE)))  # the list raises what a thread raised
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def all(self) -> Tensor:
        """All images (N, 3, S, S), uint8, with their progress on a terminal; errors as `rows`."""
        count, side = len(self), self.shape.size
        images = torch.empty(count, 3, side, side, dtype=torch.uint8)
        console = Console(stderr=True)
        for start in track(range(0, count, CHUNK), "reading images", console=console, disable=not sys.stderr.isatty()):
            images[start : start + CHUNK] = self.rows(range(start, min(start + CHUNK, count)))
        return images

    def _one(self, row: int) -> np.ndarray:
        """Pixels (S, S, 3) of an image."""
        label, shape = self.listing.label(row), self.shape
        try:
            with Image.open(io.BytesIO(self.listing.read(row))) as image:
                if shape.rgb and image.mode != "RGB":
                    raise ValueError(f"{label} has mode {image.mode} (grayscale is L); images must be RGB")
                if image.mode.startswith(("I", "F")):
                    mode = image.mode
                    raise ValueError(f"{label} has mode {mode}, more than 8 bits a pixel; convert it to 8-bit RGB")
                if shape.exact is not None and image.size != shape.exact:
                    wanted, (width, height) = "x".join(map(str, shape.exact)), image.size
                    raise ValueError(f"{label} has {width}x{height} pixels; the published images have {wanted}")
                return _square(image, shape.size)
        except Image.DecompressionBombError:
            raise ValueError(f"{label} has too many pixels to be decoded safely; make it smaller") from None
        except (OSError, SyntaxError, zlib.error, zipfile.BadZipFile):  # what Pillow and zipfile say to damaged files
            raise ValueError(f"{label} cannot be read as an image; is the download complete?") from None


def _square(image: Image.Image, size: int) -> np.ndarray:
    """The square in the middle, upright, as RGB (S, S, 3)."""
    if image.size != (size, size):
        image.draft(None, (2 * size, 2 * size))
    ImageOps.exif_transpose(image, in_place=True)
    colours = image if image.mode == "RGB" else image.convert("RGB")
    side = min(colours.size)
    left, top = ((length - side) // 2 for length in colours.size)
    square = colours.crop((left, top, left + side, top + side))
    return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.BICUBIC))


def cache_directory() -> Path:
    """`immiscible-policy` of the user's cache directory; it need not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "immiscible-policy"


def cached(decoder: Decoder) -> Tensor:
    """Decoded images (N, 3, S, S), uint8: what an earlier run kept of the same files, or decoded now and kept.

    The same files are those of the same names, sizes and contents (of a zip), or times of modification (of a folder).
    They are kept in `immiscible-policy` of the user's cache directory.
    """
    files = decoder.listing.files
    if sum(file.size for file in files) < FROM_BYTES:
        return decoder.all()
    key = digest([f"{FORMAT} {decoder.shape}", *(f"{file.name} {file.size} {file.stamp}" for file in files)])
    kept = cache_directory() / f"images-{key[:32]}.npy"
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
