"""Demonstrations on disk, read in place: replay stores, as Diffusion Policy has them, and data sets of LeRobot.

Layout of a replay store (Chi et al., RSS 2023), a directory or a zip archive of one::

    NAME.zarr/
        data/KEY          (T, ...)   numbers of each step: positions, actions, ..., under any names
        data/CAMERA       (T, H, W, 3)       a camera's pictures, 0..255, float or unsigned bytes
        meta/episode_ends (E,)       int     the step after each episode's last

Which keys a store must have, and what they hold, is the task's affair: it hands its columns to `open_store`.
Stores of zarr format 2 (as published) and 3 are read; format 2 is written. T counts the steps of all E
episodes. `demos.lerobot` says what a data set of LeRobot looks like.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
import zarr

from immiscible_policy.demos import checks, lerobot
from immiscible_policy.demos.checks import Column, is_camera
from immiscible_policy.demos.chunks import StoreError, missing_chunks, read_rows
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.frames import Frames
from immiscible_policy.demos.zarr_store import ENDS, Replay, open_replay, read_fps, read_replay

CHUNK_BYTES = 4 * 2**20
"""Uncompressed size up to which rows share one chunk file in the stores written here."""


class Stored(NamedTuple):
    """What a store says of an array before anything is read."""

    shape: tuple[int, ...]  # (T, ...)
    dtype: str


def open_store(
    path: str | Path, columns: Mapping[str, Column] | None = None, cameras: Collection[str] | None = None
) -> Demonstrations:
    """Read demonstrations; images stay on disk until they are indexed.

    zarr fills a chunk whose file is missing with zeros, so that one would train silently on a truncated
    download: here every chunk file must exist.

    `columns` are the arrays to read, beside the `cameras`; all that there are where none is named.

    Raises:
        StoreError: If the path does not exist, is neither a replay store nor a data set of LeRobot, or misses an array
            or a chunk file; if shapes, dtypes or episode ends do not fit together; if a value is NaN or infinite.
    """
    path, columns = Path(path), columns or {}
    if lerobot.is_dataset(path):
        demos = lerobot.open_dataset(path, columns, cameras)
    else:
        replay = chosen(open_replay(path), columns, cameras)
        _refuse(path, checks.structure_problems(replay.arrays, columns))
        for array in (replay.ends, *replay.arrays.values()):
            _refuse(path, missing_chunks(replay.has, array))
        demos = read_replay(path, replay, read_rows(replay.ends))
    for name, values in demos.arrays.items():
        _refuse(path, checks.finite_problems(name, values, demos.episode_ends))
    return demos


def chosen(replay: Replay, columns: Mapping[str, Column], cameras: Collection[str] | None) -> Replay:
    """The arrays that `open_store` is to read, those of the columns first."""
    named = dict.fromkeys(columns)
    for name, array in replay.arrays.items():
        if is_camera(array) and (cameras is None or name in cameras) or not is_camera(array) and not columns:
            named[name] = None
    return replay.keep(named)


def contents(path: str | Path) -> dict[str, Stored]:
    """What a store says that it has, by name, cameras among them; a StoreError if it cannot be opened."""
    path = Path(path)
    if lerobot.is_dataset(path):
        info = lerobot.read_info(path)
        return {name: Stored((info.frames, *feature.shape), feature.dtype) for name, feature in info.features.items()}
    return {name: Stored(array.shape, str(array.dtype)) for name, array in open_replay(path).arrays.items()}


def attributes(path: str | Path) -> dict[str, Any]:
    """The attributes of a replay store, such as how it was made; of a data set of LeRobot its rate and its robot."""
    if lerobot.is_dataset(Path(path)):
        info = lerobot.read_info(Path(path))
        return {"fps": info.fps, "task": info.content.get("robot_type")}
    return open_replay(Path(path)).attrs


def recorded_fps(path: str | Path) -> float | None:
    """Steps per second, where demonstrations say so; a StoreError if they cannot be opened."""
    return read_fps(attributes(path))


def write_store(
    path: str | Path,
    arrays: Mapping[str, Any],
    episode_ends: Sequence[int] | np.ndarray,
    attrs: Mapping[str, Any] | None = None,
    columns: Mapping[str, Column] | None = None,
) -> Path:
    """Write a store in zarr format 2 and return its path: equal arrays give equal bytes, whole or not at all.

    Arrays have T rows each; those of cameras may also be `Frames`, which are copied chunk by chunk. `episode_ends` (E,)
    is the step after each episode's last, `attrs` are JSON values, such as the steps per second, `{"fps": 10}`, and
    `columns` what the arrays should be.

    Raises StoreError if the path exists, or the arrays do not fit together; nothing is created then.
    """
    path, ends = Path(path), np.asarray(episode_ends)
    arrays = {name: values if isinstance(values, Frames) else np.asarray(values) for name, values in arrays.items()}
    if path.exists():
        raise StoreError(f"{path}: exists already; choose another path or remove it first")
    _refuse(path, checks.structure_problems(arrays, columns or {}))
    _refuse(path, checks.episode_problems(ends, next(iter(arrays.values())).shape[0]))
    for name, values in arrays.items():
        if not is_camera(values):
            _refuse(path, checks.finite_problems(name, np.asarray(values), ends))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        draft = Path(scratch, "store")
        root = zarr.create_group(draft, zarr_format=2, attributes=dict(sorted((attrs or {}).items())))
        for name, values in sorted(arrays.items()):
            _write_array(root.require_group("data"), name, values)
        _write_array(root.require_group("meta"), ENDS, ends.astype(np.int64))
        draft.rename(path)
    return path


def content_hash(source: str | Path | Demonstrations, *, images: bool = False) -> str:
    """Fingerprint what demonstrations say, whatever format they are stored in: 64 hexadecimal digits.

    For each array, by name: SHA-256 over `name dtype shape` and its values, little endian, in C order; an array
    (T, 1) counts as (T,). Images, which take seconds to read, count if asked for.

    Raises:
        StoreError: As `open_store`.
    """
    demos = source if isinstance(source, Demonstrations) else open_store(source)
    arrays: dict[str, np.ndarray | Frames] = {**demos.arrays, ENDS: demos.episode_ends}
    digest = hashlib.sha256()
    for name, values in sorted((arrays | dict(demos.frames) if images else arrays).items()):
        dtype = np.dtype(values.dtype).newbyteorder("<")
        shape = values.shape[:1] if values.shape[1:] == (1,) else values.shape
        digest.update(f"{name} {dtype.str} {tuple(int(n) for n in shape)}\n".encode())
        for block in values.blocks() if isinstance(values, Frames) else [values]:
            digest.update(np.ascontiguousarray(block, dtype).tobytes())
    return digest.hexdigest()


def _refuse(path: Path, problems: Iterable[str]) -> None:
    for problem in problems:
        raise StoreError(f"{path}: {problem}")


def _write_array(group: zarr.Group, name: str, values: Any) -> None:
    """Write an array in chunks of whole rows, all-zero ones too: a missing file means truncation."""
    shape = tuple(values.shape)
    dtype = np.dtype(values.dtype).newbyteorder("<")
    rows = min(max(1, CHUNK_BYTES // (math.prod(shape[1:]) * dtype.itemsize)), shape[0])
    array = group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(rows, *shape[1:]),
        compressors=numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    for start in range(0, shape[0], rows):
        array[start : start + rows] = np.asarray(values[start : start + rows])
