"""What training sees of a data set: rows of pixels and prompts.

Shape legend: N images of a set, B rows of a batch, S pixels along a side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Decoder
from immiscible_policy.image.data.listing import digest
from immiscible_policy.image.data.pixels import enlarge


class Images(Protocol):
    """A data set; every method may be called from several threads."""

    @property
    def size(self) -> int:
        """Side S of the images, pixels."""
        ...

    @property
    def content_hash(self) -> str:
        """Another one if the images, their order or their prompts are others; each kind says what it covers."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, rows: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8, of some rows (B,), int64; a function of the rows alone."""
        ...

    def prompts(self, rows: Tensor) -> list[str] | None:
        """Class name or caption of some rows (B,), int64; None if the set has none."""
        ...

    def to(self, device: torch.device | str) -> Images:
        """The same set with its pixels on a device."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Images held whole, on the device.

    Attributes:
        stored: The images (N, 3, T, T), uint8, T <= S; those of T < S are enlarged when asked for.
        size: Side S of what `pixels` returns.
        content_hash: Hash of every pixel, the prompts and the sides, see `in_memory`.
        texts: One prompt per row, or None.
    """

    stored: Tensor
    size: int
    content_hash: str
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.stored)

    def pixels(self, rows: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8, of some rows (B,)."""
        return enlarge(self.stored[rows.to(self.stored.device)], self.size)

    def prompts(self, rows: Tensor) -> list[str] | None:
        """Prompts of some rows (B,); None if the set has none."""
        return _chosen(self.texts, rows)

    def to(self, device: torch.device | str) -> MemoryImages:
        """The same set on a device."""
        return replace(self, stored=self.stored.to(device))


@dataclass(frozen=True)
class DiskImages:
    """Images that are read and decoded when they are asked for.

    A damaged file is noticed then, and not before.

    Attributes:
        decoder: Reads them.
        content_hash: Hash of names, sizes and prompts, see `Listing.names_hash`, and of the side S: not of the pixels.
        device: Where pixels are returned.
    """

    decoder: Decoder
    content_hash: str
    device: torch.device = torch.device("cpu")

    @property
    def size(self) -> int:
        """Side S of the images."""
        return self.decoder.shape.size

    def __len__(self) -> int:
        return len(self.decoder.listing.files)

    def pixels(self, rows: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8, of some rows (B,).

        Raises:
            ValueError: If one cannot be read.
        """
        return self.decoder.rows(rows.tolist()).to(self.device)

    def prompts(self, rows: Tensor) -> list[str] | None:
        """Prompts of some rows (B,); None if the set has none."""
        return _chosen(self.decoder.listing.texts, rows)

    def to(self, device: torch.device | str) -> DiskImages:
        """The same set with its pixels on a device."""
        return replace(self, device=torch.device(device))


def in_memory(stored: Tensor, size: int, texts: Sequence[str] | None = None) -> MemoryImages:
    """Hold images (N, 3, T, T), uint8; their content hash covers every pixel, the prompts and S."""
    pixels = hashlib.sha256(stored.contiguous().numpy().data).hexdigest()
    return MemoryImages(stored, size, digest([f"{tuple(stored.shape)} {size}", pixels, *(texts or ())]), texts)


def on_disk(decoder: Decoder) -> DiskImages:
    """Leave images where they lie."""
    return DiskImages(decoder, digest([str(decoder.shape.size), decoder.listing.names_hash]))


def _chosen(texts: Sequence[str] | None, rows: Tensor) -> list[str] | None:
    return None if texts is None else [texts[row] for row in rows.tolist()]
