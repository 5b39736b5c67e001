"""Reading a replay store in zarr format 2 or 3, from a directory or from a zip archive, in place."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import is_camera
from immiscible_policy.demos.chunks import StoreError, read_rows
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.frames import Frames, ZarrPictures

ENDS = "episode_ends"


class Replay(NamedTuple):
    """A store of which nothing but the metadata was read."""

    arrays: dict[str, zarr.Array]  # `data/NAME` by name, `GROUP/NAME` where it lies in a group of `data`
    ends: zarr.Array  # (E,)
    attrs: dict[str, Any]
    has: Callable[[str], bool]  # whether the store has a file, by its path inside

    def keep(self, names: Mapping[str, object]) -> Replay:
        """The store with some of its arrays, in that order."""
        return self._replace(arrays={name: self.arrays[name] for name in names if name in self.arrays})


def open_replay(path: Path) -> Replay:
    """Find the arrays of a store and its episode ends.

    Raises StoreError if the path does not exist, is not a zarr store, or has no episode ends.
    """
    if not path.exists():
        raise StoreError(f"{path}: does not exist" + ("" if path.is_absolute() else f" in {Path.cwd()}"))
    if path.is_file() and not zipfile.is_zipfile(path):
        raise StoreError(f"{path}: is a file, but not a zip archive; fetch it again if it was cut short")
    try:
        store, inside, has = _zip(path) if path.is_file() else _directory(path)
        root = zarr.open_group(store, path=inside, mode="r", use_consolidated=False)  # a copy may be older than they
        attrs = dict(root.attrs)
        data, ends = root.get("data"), root.get(f"meta/{ENDS}")
        members = sorted(data.members(max_depth=None)) if isinstance(data, zarr.Group) else []
        arrays = {name: member for name, member in members if isinstance(member, zarr.Array)}
    except StoreError:
        raise
    except Exception as error:  # zarr raises a dozen kinds for broken metadata; each means the same here
        raise StoreError(f"{path}: not a zarr store ({type(error).__name__}: {error})") from error
    if not isinstance(ends, zarr.Array):
        raise StoreError(f"{path}: meta/{ENDS} is missing; it marks where each episode ends")
    return Replay(arrays, ends, attrs, has)


def read_replay(path: Path, replay: Replay, ends: np.ndarray) -> Demonstrations:
    """Read the arrays of a store whose structure is sound and whose chunk files are there; images stay on disk.

    Raises StoreError if the episode ends do not fit, or a chunk file cannot be decoded.
    """
    n_steps = next(iter(replay.arrays.values())).shape[0]
    for problem in checks.episode_problems(ends, n_steps):
        raise StoreError(f"{path}: {problem}")
    return Demonstrations(
        path,
        {name: read_rows(array) for name, array in replay.arrays.items() if not is_camera(array)},
        ends.astype(np.int64),
        {name: Frames.all_of(ZarrPictures(array)) for name, array in replay.arrays.items() if is_camera(array)},
        read_fps(replay.attrs),
    )


def read_fps(attrs: Mapping[str, Any]) -> float | None:
    """The steps per second that attributes state; None if they state none."""
    fps = attrs.get("fps")
    return float(fps) if isinstance(fps, int | float) and 0 < fps < math.inf else None


def _directory(path: Path) -> tuple[LocalStore, str, Callable[[str], bool]]:
    return LocalStore(path, read_only=True), "", lambda file: (path / file).is_file()


def _zip(path: Path) -> tuple[ZipStore, str, Callable[[str], bool]]:
    """The archive, where in it the store begins, and its files."""
    with zipfile.ZipFile(path) as archive:
        files = set(archive.namelist())
    marks = [f"meta/{ENDS}/{name}" for name in (".zarray", "zarr.json")]
    roots = sorted({file.removesuffix(mark).rstrip("/") for file in files for mark in marks if file.endswith(mark)})
    if len(roots) > 1:
        raise StoreError(f"{path}: holds {len(roots)} stores ({', '.join(roots)}); give an archive of one")
    return ZipStore(path, mode="r"), roots[0] if roots else "", files.__contains__
