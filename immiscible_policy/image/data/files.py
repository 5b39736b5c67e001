"""The images of a data set before they are decoded: where they lie, in which order, with which prompts.

A folder and a zip of one answer alike, in the same order.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageFile(NamedTuple):
    """An encoded image."""

    name: str  # below the listed folder, with `/` between folders
    size: int  # [bytes]
    stamp: int  # changes with the content: CRC-32 in a zip, time of modification in a folder [ns]

    @property
    def depth(self) -> int:
        """Number of folders around the image."""
        return self.name.count("/")

    @property
    def class_name(self) -> str:
        """Name of the folder that the image lies in, underscores as they are; empty at the top."""
        return PurePosixPath(self.name).parent.name


class Folder:
    """A directory of images; `read` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self) -> set[str]:
        """Names of the folders at the top."""
        return {entry.name for entry in self.path.iterdir() if entry.is_dir()}

    def has(self, folder: str) -> bool:
        """Whether it holds a folder of that name, `/` between folders."""
        return (self.path / folder).is_dir()

    def images(self, folder: str) -> Iterator[ImageFile]:
        """All images at any depth below a folder, in any order; hidden files and folders are left out."""
        top = self.path / folder
        for directory, folders, names in os.walk(top, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            within = "" if Path(directory) == top else f"{Path(directory).relative_to(top).as_posix()}/"
            for name in filter(_is_image, names):
                path = os.path.join(directory, name)
                if os.path.isfile(path):  # no broken link
                    status = os.stat(path)
                    yield ImageFile(within + name, status.st_size, status.st_mtime_ns)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return (self.path / name).read_bytes()


class Zip:
    """A zip archive of images, which stays open; it answers as a folder does, and may be sent to processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)  # locks the file while a thread reads from it
        self._files = [info for info in self._archive.infolist() if not info.is_dir()]
        self._folders = {str(folder) for info in self._files for folder in PurePosixPath(info.filename).parents}

    def __reduce__(self) -> tuple[Any, ...]:
        return Zip, (self.path,)  # another process opens it anew

    def folders(self) -> set[str]:
        """Names of the folders at the top."""
        return {folder for folder in self._folders if "/" not in folder and folder != "."}

    def has(self, folder: str) -> bool:
        """Whether it holds a folder of that name."""
        return str(PurePosixPath(folder)) in self._folders

    def images(self, folder: str) -> Iterator[ImageFile]:
        """All images at any depth below a folder."""
        within = f"{folder}/" if folder else ""
        for info in self._files:
            name = info.filename.removeprefix(within)
            if info.filename.startswith(within) and _is_image(name):
                yield ImageFile(name, info.file_size, info.CRC)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return self._archive.read(name)


Source = Folder | Zip


def open_source(path: Path, wanted: str, *, zips: bool = True) -> Source:
    """A directory, or a zip where `zips` allows it; ValueError, ending with what is wanted, for other files."""
    if path.is_file() and not zips:
        raise ValueError(f"{path} is a file; {wanted}")
    try:
        return Zip(path) if path.is_file() else Folder(path)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is not a zip archive; {wanted}") from None


def find(source: Source, *names: str) -> str | None:
    """The first of some folders that a source has, at its top or one folder further down; None if it has none."""
    tops = sorted(top for top in source.folders() if not top.startswith((".", "__")))
    places = (f"{top}{name}" for name in names for top in ("", *(f"{top}/" for top in tops)))
    return next((place for place in places if source.has(place)), None)


def in_turn(files: Iterable[ImageFile]) -> list[ImageFile]:
    """Images CLASS/NAME sorted by name, the classes in turn, so that any first n hold every class alike."""
    classes: dict[str, list[ImageFile]] = defaultdict(list)
    for file in sorted(files):
        classes[file.class_name].append(file)
    return [file for file in chain.from_iterable(zip_longest(*classes.values())) if file is not None]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and "/." not in f"/{name}"


@dataclass(frozen=True)
class Listing:
    """Images below a folder of a source (empty: its top), in the order of their rows, and any prompts."""

    source: Source
    within: str
    files: Sequence[ImageFile]
    texts: Sequence[str] | None = None

    def first(self, limit: int | None) -> Listing:
        """Only the first `limit` images; None for all."""
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
    """A data set as it is published."""

    name: str  # in messages
    splits: tuple[str, ...]
    wanted: str  # what to download, from where, and how it must lie
    find: Callable[[Path, str], Listing]  # (path, split) -> its images
    size: int | None  # side of the images by default; None if there is no default
    exact: tuple[int, int] | None = None  # width and height of every published image; None if they differ


def digest(lines: Iterable[str]) -> str:
    """SHA-256 over lines of text."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode() + b"\n")
    return total.hexdigest()
