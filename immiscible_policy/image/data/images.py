"""What training sees of a data set: rows of pixels and prompts.

Shape legend: N images of a set, B rows of a batch, S pixels along a side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Decoder
from immiscible_policy.image.data.files import digest
from immiscible_policy.image.data.pixels import enlarge

OWN, NONE = "own", "none"  # Prompts that are not a file: the images' own class names or captions; and nothing


@dataclass(frozen=True)
class Images:
    """A data set; every method may be called from several threads.

    Images are held (N, 3, T, T), uint8, T <= S, and enlarged where T < S; or read and decoded on demand, so that a
    damaged file is noticed then, and not before. The hash changes with the images, their order, their side and their
    prompts: of held images with every pixel, of others with names and sizes of the files, see `Listing.names_hash`.
    """

    held: Tensor | Decoder
    size: int  # side S of what `pixels` returns
    content_hash: str
    texts: Sequence[str] | None = None  # class name or caption of each row; None if the set has none
    device: torch.device = torch.device("cpu")  # where pixels are returned

    def __len__(self) -> int:
        return len(self.held)

    def pixels(self, rows: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8, of rows (B,), int64, by the rows alone; ValueError if one cannot be read."""
        if isinstance(self.held, Tensor):
            return enlarge(self.held[rows.to(self.device)], self.size)
        return self.held.rows(rows.tolist()).to(self.device)

    def prompts(self, rows: Tensor) -> list[str] | None:
        """Class name or caption of some rows (B,), int64; None if the set has none."""
        return None if self.texts is None else [self.texts[row] for row in rows.tolist()]

    def to(self, device: torch.device | str) -> Images:
        """The same set with its pixels on a device."""
        held = self.held.to(device) if isinstance(self.held, Tensor) else self.held
        return replace(self, held=held, device=torch.device(device))


def in_memory(stored: Tensor, size: int, texts: Sequence[str] | None = None) -> Images:
    """Hold images (N, 3, T, T), uint8."""
    pixels = hashlib.sha256(stored.contiguous().numpy().data).hexdigest()
    return Images(stored, size, digest([f"{tuple(stored.shape)} {size}", pixels, *(texts or ())]), texts)


def prompts_for(images: Images, source: str) -> Images:
    """The images with the prompts of a source.

    `own` are the class names or captions that the images know, `none` is unconditional; else a text file (UTF-8) with
    one prompt per line, for the images in their order; an empty line is the empty prompt.
    ValueError if the images know no prompts, or the file is missing, unreadable or of the wrong length.
    """
    if source == NONE:
        return replace(images, texts=None)
    if source == OWN:
        if images.texts is None:
            raise ValueError(f"prompts={OWN}: these images have none; use prompts=none, or a file with one per line")
        return images
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"prompts={path}: no such file; known besides files: {OWN}, {NONE}")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"prompts={path} is not UTF-8 text") from None
    if len(lines) != len(images):
        raise ValueError(f"prompts={path} has {len(lines)} lines for {len(images)} images; write one prompt per image")
    content = hashlib.sha256("\n".join((images.content_hash, *lines)).encode()).hexdigest()
    return replace(images, texts=lines, content_hash=content)
