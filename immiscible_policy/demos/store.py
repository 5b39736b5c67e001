"""Demonstrations on disk: the zarr replay store that Diffusion Policy (Chi et al., RSS 2023) trains from.

Layout of a store::

    NAME.zarr/
        data/KEY          (T, ...)   numbers of each step: positions, actions, ..., under any names
        data/CAMERA       (T, H, W, 3)       a camera's pictures, 0..255, float or unsigned bytes
        meta/episode_ends (E,)       int     the step after each episode's last

Which keys a store must have, and what they hold, is the task's affair: it hands its columns to `open_store`.
Stores of zarr format 2 (as published) and 3 are read; format 2 is written. T counts the steps of all E
episodes.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import Column, is_camera
from immiscible_policy.demos.chunks import StoreError, missing_chunks, read_rows
from immiscible_policy.demos.frames import Frames

CHUNK_BYTES = 4 * 2**20
"""Uncompressed size up to which rows share one chunk file in the stores written here."""
ENDS = "episode_ends"


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes laid end to end, read from the store `path`; `demos[key]` is an array."""

    path: Path
    arrays: Mapping[str, np.ndarray]  # by key, (T, ...) numbers of every step
    episode_ends: np.ndarray  # (E,) int64, the step after each episode's last
    frames: Mapping[str, Frames] = field(default_factory=dict)  # by camera, (T, H, W, 3) 0..255, read when indexed

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    def __getitem__(self, key: str) -> np.ndarray:
        """An array (T, ...); a StoreError if there is none of that name."""
        if key not in self.arrays:
            raise StoreError(f"{self.path}: data/{key} is missing, it has {_listed(self.arrays)}")
        return self.arrays[key]

    def camera(self, name: str) -> Frames:
        """What a camera recorded; a StoreError if there is none of that name."""
        if name not in self.frames:
            raise StoreError(f"{self.path}: data/{name} is missing, it has {_listed(self.frames)}")
        return self.frames[name]

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.episode_ends)

    @property
    def lengths(self) -> np.ndarray:
        """(E,) steps of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def episodes(self) -> list[slice]:
        """The steps of each episode."""
        return [slice(int(end - n), int(end)) for end, n in zip(self.episode_ends, self.lengths, strict=True)]

    def select(self, ids: Sequence[int] | np.ndarray) -> Demonstrations:
        """Keep the episodes `ids`, in that order; a ValueError if there are none, or one does not exist."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(f"select needs a list of at least one episode number; got {ids.tolist()}")
        unknown = ids[(ids < 0) | (ids >= self.n_episodes)]
        if len(unknown):
            raise ValueError(f"no episode {unknown[0]}; the store holds episodes 0 to {self.n_episodes - 1}")
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths)
        steps = np.arange(ends[-1]) + np.repeat(self.episode_ends[ids] - ends, lengths)
        return replace(
            self,
            arrays={key: values[steps] for key, values in self.arrays.items()},
            episode_ends=ends,
            frames={camera: frames.take(steps) for camera, frames in self.frames.items()},
        )


def join(first: Demonstrations, second: Demonstrations) -> Demonstrations:
    """Both, one after the other, of two selections of the same store; cameras that one of them lacks are left out."""
    shared = [(camera, one, second.frames[camera]) for camera, one in first.frames.items() if camera in second.frames]
    return replace(
        first,
        arrays={key: np.concatenate([values, second[key]]) for key, values in first.arrays.items()},
        episode_ends=np.concatenate([first.episode_ends, second.episode_ends + len(first)]),
        frames={camera: one.join(other) for camera, one, other in shared},
    )


def open_store(path: str | Path, columns: Mapping[str, Column] | None = None) -> Demonstrations:
    """Read demonstrations; images stay on disk until they are indexed.

    zarr fills a chunk whose file is missing with zeros, so that one would train silently on a truncated
    download: here every chunk file must exist.

    `columns` are the arrays to read, beside the cameras; all that there are if it names none.

    Raises:
        StoreError: If the path does not exist, is not a zarr store, or misses an array or a chunk file; if
            shapes, dtypes or episode ends do not fit together; if a value is NaN or infinite.
    """
    path, columns = Path(path), columns or {}
    stored, ends_array = open_arrays(path, columns)
    _refuse(path, checks.structure_problems(stored, columns))
    for array in (ends_array, *stored.values()):
        _refuse(path, missing_chunks(path, array))
    demos = read_store(path, stored, read_rows(ends_array))
    for name, values in demos.arrays.items():
        _refuse(path, checks.finite_problems(name, values, demos.episode_ends))
    return demos


def read_store(path: Path, stored: Mapping[str, zarr.Array], ends: np.ndarray) -> Demonstrations:
    """Read what `open_arrays` gave, once its structure is sound and its chunk files are there.

    Raises StoreError if the episode ends do not fit, or a chunk file cannot be decoded.
    """
    n_steps = next(iter(stored.values())).shape[0]
    _refuse(path, checks.episode_problems(ends, n_steps))
    steps, plain = np.arange(n_steps), np.zeros(n_steps, bool)
    return Demonstrations(
        path,
        {name: read_rows(array) for name, array in stored.items() if not is_camera(array)},
        ends.astype(np.int64),
        {name: Frames(array, steps, plain) for name, array in stored.items() if is_camera(array)},
    )


def open_arrays(path: Path, columns: Mapping[str, Column]) -> tuple[dict[str, zarr.Array], zarr.Array]:
    """Find the arrays of `open_store`, by name, and the episode ends; nothing but their metadata is read.

    Raises StoreError if the path does not exist, is not a zarr store, or has no episode ends.
    """
    if not path.is_dir():
        cure = "is a file, not a zarr directory; unpack it" if path.exists() else "does not exist"
        raise StoreError(f"{path}: {cure}")
    try:
        root = zarr.open_group(path, mode="r")
        data, ends = root.get("data"), root.get(f"meta/{ENDS}")
        arrays = dict(sorted(data.arrays())) if isinstance(data, zarr.Group) else {}
    except Exception as error:  # zarr raises a dozen kinds for broken metadata; each means the same here
        raise StoreError(f"{path}: not a zarr store ({type(error).__name__}: {error})") from error
    if not isinstance(ends, zarr.Array):
        raise StoreError(f"{path}: meta/{ENDS} is missing; it marks where each episode ends")
    named = {name: arrays[name] for name in columns if name in arrays}
    return named | {name: array for name, array in arrays.items() if not columns or is_camera(array)}, ends


def write_store(
    path: str | Path,
    arrays: Mapping[str, Any],
    episode_ends: Sequence[int] | np.ndarray,
    attrs: Mapping[str, Any] | None = None,
    columns: Mapping[str, Column] | None = None,
) -> Path:
    """Write a store in zarr format 2 and return its path: equal arrays give equal bytes, whole or not at all.

    Arrays have T rows each; those of cameras may also be `Frames`, which are copied chunk by chunk. `episode_ends` (E,)
    is the step after each episode's last, `attrs` the provenance as JSON values, `columns` what the arrays should be.

    Raises StoreError if the path exists, or the arrays do not fit together; nothing is created then.
    """
    path, ends = Path(path), np.asarray(episode_ends)
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
    """Fingerprint what demonstrations say, whatever their chunks, compression or zarr format: 64 hexadecimal digits.

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


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"data/{name}" for name in arrays) or "none"


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
