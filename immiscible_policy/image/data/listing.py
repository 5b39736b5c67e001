"""The images of a data set before they are decoded: which files, in which order, with which prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from immiscible_policy.image.data.files import ImageFile, Source


@dataclass(frozen=True)
class Listing:
    """Images below a folder of a source (empty: its top), in the order of their rows, and any prompts."""

    source: Source
    within: str
    files: Sequence[ImageFile]
    texts: Sequence[str] | None = None

    def first(self, limit: int | None) -> Listing:
        """Only the first so many images; None for all."""
        texts = None if self.texts is None else self.texts[:limit]
        return replace(self, files=self.files[:limit], texts=texts)

    def label(self, row: int) -> str:
        """How messages name an image."""
        return f"{self.source.path}: {self._path(row)}"

    def read(self, row: int) -> bytes:
        """An image's file."""
        return self.source.read(self._path(row))

    @property
    def names_hash(self) -> str:
        """SHA-256 over names and sizes [bytes] of the files in the order of their rows, and over the prompts.

        An image that is moved, renamed, or replaced by one of another size changes it; other bytes in a file of the
        same name and size do not. A zip and the folder that it was made of have the same.
        """
        texts = self.texts or [""] * len(self.files)
        return digest(f"{file.name} {file.size} {text}" for file, text in zip(self.files, texts, strict=True))

    def _path(self, row: int) -> str:
        return f"{self.within}/{self.files[row].name}".removeprefix("/")


@dataclass(frozen=True)
class Dataset:
    """A data set as it is published.

    Attributes:
        name: Its name in messages.
        splits: Its parts.
        wanted: What to download, from where, and how it must lie.
        find: (path, split) -> its images.
        size: Side unless another is asked for; None if one must be.
        exact: Width and height of every published image; None if they differ.
    """

    name: str
    splits: tuple[str, ...]
    wanted: str
    find: Callable[[Path, str], Listing]
    size: int | None
    exact: tuple[int, int] | None = None


def digest(lines: Iterable[str]) -> str:
    """SHA-256 over lines of text."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode() + b"\n")
    return total.hexdigest()
