"""The frames that cameras recorded: read when indexed, or all of them at once as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import zarr

from immiscible_policy.demos.checks import brightness_problem
from immiscible_policy.demos.chunks import read_rows
from immiscible_policy.network.crop import resize


class Pictures(Protocol):
    """What a camera recorded, 0..255, on disk."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(stored steps, H, W, 3)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels."""
        ...

    @property
    def block(self) -> int:
        """So many pictures are best read at once."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures (n, H, W, 3) of stored steps in increasing order; a StoreError if one cannot be decoded."""
        ...


@dataclass(frozen=True, eq=False)
class ZarrPictures:
    """Pictures that are rows of a zarr array."""

    array: zarr.Array

    @property
    def name(self) -> str:
        """Its path in the store."""
        return self.array.path

    @property
    def shape(self) -> tuple[int, ...]:
        """(stored steps, H, W, 3)."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels."""
        return np.dtype(self.array.dtype)

    @property
    def block(self) -> int:
        """The rows of a chunk."""
        return self.array.chunks[0]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures (n, H, W, 3) of stored steps in increasing order; a StoreError if one cannot be decoded."""
        return read_rows(self.array, rows)


@dataclass(frozen=True, eq=False)
class Frames:
    """Images of one camera, read from disk only when indexed."""

    pictures: Pictures
    rows: np.ndarray  # (T,) which stored step each step shows
    mirrored: np.ndarray  # (T,) whether it is shown reflected about the image's anti-diagonal
    size: tuple[int, int] | None = None  # height and width that images are scaled to; None: as stored

    @classmethod
    def all_of(cls, pictures: Pictures) -> Frames:
        """Every stored step once, in order."""
        count = pictures.shape[0]
        return cls(pictures, np.arange(count), np.zeros(count, bool))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return (len(self.rows), *(self.size or self.pictures.shape[1:3]), 3)

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels."""
        return self.pictures.dtype

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Read some steps' images, (n, H, W, 3). Raises StoreError if one cannot be decoded."""
        stored, position = np.unique(self.rows[index], return_inverse=True)
        images = self.pictures.read(stored)[position]
        flip = self.mirrored[index]
        if flip.any():
            images[flip] = images[flip][:, ::-1, ::-1].transpose(0, 2, 1, 3)
        return images if self.size is None else resize(torch.from_numpy(images), self.size).numpy()

    def take(self, steps: np.ndarray) -> Frames:
        """Keep the given steps, still unread."""
        return replace(self, rows=self.rows[steps], mirrored=self.mirrored[steps])

    def join(self, other: Frames) -> Frames:
        """These and then those of another selection of the same pictures, still unread."""
        rows, mirrored = np.append(self.rows, other.rows), np.append(self.mirrored, other.mirrored)
        return replace(self, rows=rows, mirrored=mirrored)

    def blocks(self) -> Iterator[np.ndarray]:
        """Read all images in order, a stored block's length at a time, so that memory stays bounded."""
        for start in range(0, len(self), self.pictures.block):
            yield self[start : start + self.pictures.block]

    def as_bytes(self) -> torch.Tensor:
        """Read all images as bytes, (T, H, W, 3) uint8: 25,650 frames of 96 x 96 take 709 MB.

        Raises ValueError if a pixel lies outside 0..255, or none above 1.
        """
        images, start, brightest = np.empty(self.shape, np.uint8), 0, 0.0
        for block in self.blocks():
            low, high = float(block.min()), float(block.max())
            if not (low >= 0 and high <= 255):  # NaN fails both
                raise ValueError(f"{self.pictures.name} holds {low:g}..{high:g}; pixels should be 0..255")
            images[start : start + len(block)] = np.rint(block)
            start, brightest = start + len(block), max(brightest, high)
        if problem := brightness_problem(self.pictures.name, brightest):
            raise ValueError(problem)
        return torch.from_numpy(images)
