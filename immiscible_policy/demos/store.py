"""Demonstrations on disk: the zarr replay store that Diffusion Policy (Chi et al., RSS 2023) trains from.

Layout of a store::

    NAME.zarr/
        data/state        (T, 5)     float   agent x, y, block x, y [px], block angle [rad]
        data/action       (T, 2)     float   commanded agent position x, y [px]
        data/keypoint     (T, 9, 2)  float   points on the block, world frame x, y [px]
        data/n_contacts   (T, 1)     float   contact points during the step           (may be absent)
        data/img          (T, H, W, 3)       camera, 0..255, float or unsigned bytes   (may be absent)
        data/CAMERA       (T, H, W, 3)       further cameras, of any other name        (may be absent)
        meta/episode_ends (E,)       int     the step after each episode's last

Stores of zarr format 2 (as published) and 3 are read; format 2 is written. T counts the steps of all E
episodes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from immiscible_policy.demos import checks

CHUNK_BYTES = 4 * 2**20
"""Uncompressed size up to which rows share one chunk file in the stores written here."""


class StoreError(ValueError):
    """A store of demonstrations that cannot be read or written as it is; the message is one line."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Images of the demonstrations, read from disk only when indexed.

    Attributes:
        array: The stored zarr array, (stored steps, H, W, 3), 0..255.
        rows: (T,) which stored step each step shows.
        mirrored: (T,) whether it is shown reflected about the image's anti-diagonal (see `mirror`).
    """

    array: zarr.Array
    rows: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels."""
        return np.dtype(self.array.dtype)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Read some steps' images, (n, H, W, 3).

        Raises:
            StoreError: If a chunk file cannot be decoded.
        """
        rows = self.rows[index]
        stored, position = np.unique(rows, return_inverse=True)
        images = read_rows(self.array, stored)[position]
        flip = self.mirrored[index]
        if flip.any():
            images[flip] = images[flip][:, ::-1, ::-1].transpose(0, 2, 1, 3)
        return images

    def take(self, steps: np.ndarray) -> Frames:
        """Keep the given steps, still unread."""
        return Frames(self.array, self.rows[steps], self.mirrored[steps])

    def blocks(self) -> Iterator[np.ndarray]:
        """Read all images in order, a stored chunk's length at a time, so that memory stays bounded."""
        for start in range(0, len(self), self.array.chunks[0]):
            yield self[start : start + self.array.chunks[0]]

    def to_uint8(self) -> np.ndarray:
        """Read all images as bytes, (T, H, W, 3) uint8: a quarter of what float32 takes."""
        images = np.empty(self.shape, np.uint8)
        start = 0
        for block in self.blocks():
            images[start : start + len(block)] = np.rint(block)
            start += len(block)
        return images


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes laid end to end.

    Attributes:
        path: The store that they were read from.
        state: (T, 5) agent x, y, block x, y [px], block angle [rad].
        action: (T, 2) commanded agent position [px].
        keypoint: (T, 9, 2) points on the block in the world frame [px].
        n_contacts: (T,) contact points during each step, or None where the store holds none.
        image: (T, H, W, 3) camera images 0..255, read when indexed, or None where the store holds none.
        episode_ends: (E,) int64, the step after each episode's last.
        views: Images of the further cameras, by name.
    """

    path: Path
    state: np.ndarray
    action: np.ndarray
    keypoint: np.ndarray
    n_contacts: np.ndarray | None
    image: Frames | None
    episode_ends: np.ndarray
    views: dict[str, Frames] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def n_episodes(self) -> int:
        """E."""
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
        """Keep the episodes `ids`, in that order.

        Raises:
            ValueError: If `ids` is empty or names an episode that does not exist.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(f"select needs a list of at least one episode number; got {ids.tolist()}")
        unknown = ids[(ids < 0) | (ids >= self.n_episodes)]
        if len(unknown):
            raise ValueError(f"no episode {unknown[0]}; the store holds episodes 0 to {self.n_episodes - 1}")
        steps = np.concatenate([np.arange(len(self))[self.episodes[i]] for i in ids])
        return replace(
            self,
            state=self.state[steps],
            action=self.action[steps],
            keypoint=self.keypoint[steps],
            n_contacts=None if self.n_contacts is None else self.n_contacts[steps],
            image=None if self.image is None else self.image.take(steps),
            episode_ends=np.cumsum(self.lengths[ids]),
            views={name: frames.take(steps) for name, frames in self.views.items()},
        )


def open_store(path: str | Path) -> Demonstrations:
    """Read demonstrations; images stay on disk until they are indexed.

    zarr fills a chunk whose file is missing with zeros, so that one would train silently on a truncated
    download: here every chunk file must exist.

    Args:
        path: Directory of a zarr store, format 2 or 3.

    Raises:
        StoreError: If the path does not exist, is no zarr store, or misses an array or a chunk file; if
            shapes, dtypes or episode ends do not fit together; if a value is NaN or infinite.
    """
    path = Path(path)
    stored, further = open_arrays(path), open_views(path)
    _refuse(path, checks.structure_problems({n: a for n, a in stored.items() if n != "episode_ends"}))
    arrays = [*stored.values(), *further.values()]
    _refuse(path, itertools.chain.from_iterable(missing_chunks(path, array) for array in arrays))
    read = {name: read_rows(array) for name, array in stored.items() if name != "img"}
    n_steps, ends = len(read["state"]), read.pop("episode_ends")
    _refuse(path, checks.episode_problems(ends, n_steps))
    for name, values in read.items():
        _refuse(path, checks.finite_problems(name, values, ends))
    _refuse(path, checks.view_problems(further, n_steps))
    cameras = further | ({"img": stored["img"]} if "img" in stored else {})
    views = {name: Frames(array, np.arange(n_steps), np.zeros(n_steps, bool)) for name, array in cameras.items()}
    image = views.pop("img", None)
    n_contacts = read["n_contacts"].reshape(n_steps) if "n_contacts" in read else None
    return Demonstrations(
        path, read["state"], read["action"], read["keypoint"], n_contacts, image, ends.astype(np.int64), views
    )


def open_arrays(path: Path) -> dict[str, zarr.Array]:
    """Find a store's arrays, by name; nothing but their metadata is read.

    Raises:
        StoreError: If the path does not exist, is no zarr store, or has no episode ends.
    """
    if not path.is_dir():
        cure = "is a file, not a zarr directory; unpack it" if path.exists() else "does not exist"
        raise StoreError(f"{path}: {cure}")
    try:
        root = zarr.open_group(path, mode="r")
        arrays = {name: root.get(f"data/{name}") for name in (*checks.REQUIRED, *checks.OPTIONAL)}
        arrays["episode_ends"] = root.get("meta/episode_ends")
    except Exception as error:  # zarr raises a dozen kinds for broken metadata; each means the same here
        raise StoreError(f"{path}: not a zarr store ({type(error).__name__}: {error})") from error
    if not isinstance(arrays["episode_ends"], zarr.Array):
        raise StoreError(f"{path}: meta/episode_ends is missing; it marks where each episode ends")
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def open_views(path: Path) -> dict[str, zarr.Array]:
    """Find the images of cameras other than `img`: four-dimensional arrays whose names nothing else bears."""
    data = zarr.open_group(path, mode="r").get("data")
    arrays = dict(data.arrays()) if isinstance(data, zarr.Group) else {}
    return {name: array for name, array in sorted(arrays.items()) if name not in checks.ROW_SHAPES and array.ndim == 4}


@dataclass(frozen=True)
class Chunk:
    """One chunk file of an array: its path inside the store, and the part of the array that it holds."""

    file: str
    region: tuple[slice, ...]

    def __str__(self) -> str:
        return f"chunk file {self.file} (steps {self.region[0].start} to {self.region[0].stop - 1})"


def chunks_of(array: zarr.Array) -> list[Chunk]:
    """Every chunk file that a complete array has."""
    sizes = array.shards or array.chunks
    counts = [math.ceil(length / size) for length, size in zip(array.shape, sizes, strict=True)]
    return [
        Chunk(
            f"{array.path}/{array.metadata.encode_chunk_key(position)}",
            tuple(
                slice(i * size, min((i + 1) * size, length))
                for i, size, length in zip(position, sizes, array.shape, strict=True)
            ),
        )
        for position in itertools.product(*map(range, counts))
    ]


def missing_chunks(path: Path, array: zarr.Array) -> Iterator[str]:
    """Say, in one line, which chunk files are not there."""
    chunks = chunks_of(array)
    missing = [chunk for chunk in chunks if not (path / chunk.file).is_file()]
    if missing:
        yield (
            f"{missing[0]} is missing, {len(missing)} of {len(chunks)} of {array.path}; the store is "
            "truncated: fetch it again, or write it with write_empty_chunks=True"
        )


def undecodable_chunks(array: zarr.Array) -> Iterator[str]:
    """Name every chunk file that cannot be decoded, reading one at a time."""
    for chunk in chunks_of(array):
        try:
            array[chunk.region]
        except Exception as error:  # every codec has its own exception
            yield f"{chunk} cannot be decoded ({error})"


def read_rows(array: zarr.Array, rows: np.ndarray | None = None) -> np.ndarray:
    """Read an array, or some of its rows in increasing order, in the machine's byte order.

    Raises:
        StoreError: If a chunk file cannot be decoded, naming it.
    """
    try:
        if rows is None:
            values = array[:]
        elif len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            values = array[int(rows[0]) : int(rows[-1]) + 1]
        else:
            values = array.oindex[rows]
        return np.asarray(values, np.dtype(array.dtype).newbyteorder("="))
    except Exception as error:  # every codec has its own exception
        path = str(array.store_path.store).removeprefix("file://")
        problem = next(undecodable_chunks(array), f"{array.path} cannot be read ({error})")
        raise StoreError(f"{path}: {problem}") from error


def write_store(
    path: str | Path,
    arrays: Mapping[str, Any],
    episode_ends: Sequence[int] | np.ndarray,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a store in zarr format 2: equal arrays give equal bytes, and it appears whole or not at all.

    Args:
        path: Directory to create; it must not exist.
        arrays: By their stored names (`state`, `action`, `keypoint`, perhaps `n_contacts` and `img`), each of
            T rows; `img` may also be `Frames`, which are copied chunk by chunk.
        episode_ends: (E,) the step after each episode's last.
        attrs: Attributes of the store (provenance), as JSON values.

    Returns:
        The path.

    Raises:
        StoreError: If the path exists, or the arrays do not fit together; nothing is created then.
    """
    path, ends = Path(path), np.asarray(episode_ends)
    if path.exists():
        raise StoreError(f"{path}: exists already; choose another path or remove it first")
    unknown = set(arrays) - set(checks.ROW_SHAPES)
    if unknown:
        raise StoreError(f"{path}: unknown array '{min(unknown)}'; known: {', '.join(checks.ROW_SHAPES)}")
    _refuse(path, checks.structure_problems(arrays))
    _refuse(path, checks.episode_problems(ends, arrays["state"].shape[0]))
    for name in arrays.keys() - {"img"}:
        _refuse(path, checks.finite_problems(name, np.asarray(arrays[name]), ends))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        draft = Path(scratch, "store")
        root = zarr.create_group(draft, zarr_format=2, attributes=dict(sorted((attrs or {}).items())))
        for name, values in sorted(arrays.items()):
            _write_array(root.require_group("data"), name, values)
        _write_array(root.require_group("meta"), "episode_ends", ends.astype(np.int64))
        draft.rename(path)
    return path


def content_hash(source: str | Path | Demonstrations, *, images: bool = False) -> str:
    """Fingerprint what demonstrations say, whatever their chunks, compression or zarr format.

    For each array, by name: SHA-256 over `name dtype shape` and its values, little endian, in C order.

    Args:
        source: A store, or demonstrations already open.
        images: Whether the images count too; they take seconds to read, a chunk at a time.

    Returns:
        64 hexadecimal digits. With and without images differ, unless there are none.

    Raises:
        StoreError: As `open_store`.
    """
    demos = source if isinstance(source, Demonstrations) else open_store(source)
    arrays: dict[str, Any] = {name: getattr(demos, name) for name in ("action", "episode_ends")}
    if images:
        arrays |= demos.views | ({} if demos.image is None else {"img": demos.image})
    arrays |= {name: getattr(demos, name) for name in ("keypoint", "n_contacts", "state")}
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        if values is not None:
            _hash_array(digest.update, name, values)
    return digest.hexdigest()


def embedded_store() -> Path:
    """Path of the project's own demonstrations: package data where installed, `data/` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / "pusht_expert.zarr"
    return installed if installed.is_dir() else package.parent / "data" / "pusht_expert.zarr"


def _refuse(path: Path, problems: Iterator[str]) -> None:
    for problem in problems:
        raise StoreError(f"{path}: {problem}")


def _write_array(group: zarr.Group, name: str, values: Any) -> None:
    """Write an array in chunks of whole rows, all-zero ones too: a missing file means truncation."""
    shape = (len(values), 1) if name == "n_contacts" else tuple(values.shape)
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
        block = np.asarray(values[start : start + rows])
        array[start : start + rows] = block.reshape(len(block), *shape[1:])


def _hash_array(update: Callable[[bytes], None], name: str, values: np.ndarray | Frames) -> None:
    dtype = np.dtype(values.dtype).newbyteorder("<")
    update(f"{name} {dtype.str} {tuple(int(n) for n in values.shape)}\n".encode())
    for block in values.blocks() if isinstance(values, Frames) else [values]:
        update(np.ascontiguousarray(block, dtype).tobytes())
