"""The chunk files of a zarr array: which ones it should have, which are missing or damaged, and reading them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import zarr
from zarr.storage import LocalStore

BLOSC_HEADER = 16
"""Bytes before a chunk of Blosc; the last four say how long it is with them."""


class StoreError(ValueError):
    """A store of demonstrations that cannot be read or written as it is; the message is one line."""


@dataclass(frozen=True)
class Chunk:
    """One chunk file of an array: its path inside the store, and the part of the array that it holds."""

    file: str
    region: tuple[slice, ...]

    def __str__(self) -> str:
        return f"chunk file {self.file} (steps {self.region[0].start} to {self.region[0].stop - 1})"


def chunks_of(array: zarr.Array, rows: range | None = None) -> list[Chunk]:
    """Every chunk file that a complete array has, or those that hold some of its rows."""
    sizes = array.shards or array.chunks
    numbers = [range(-(-length // size)) for length, size in zip(array.shape, sizes, strict=True)]
    if rows is not None:
        numbers[0] = range(rows.start // sizes[0], -(-rows.stop // sizes[0]))
    return [
        Chunk(
            f"{array.path}/{array.metadata.encode_chunk_key(position)}",
            tuple(
                slice(number * size, min((number + 1) * size, length))
                for number, size, length in zip(position, sizes, array.shape, strict=True)
            ),
        )
        for position in itertools.product(*numbers)
    ]


def missing_chunks(has: Callable[[str], bool], array: zarr.Array) -> Iterator[str]:
    """Say, in one line, which chunk files are not there; `has` answers for a path inside the store."""
    chunks = chunks_of(array)
    missing = [chunk for chunk in chunks if not has(chunk.file)]
    if missing:
        yield (
            f"{missing[0]} is missing, {len(missing)} of {len(chunks)} of {array.path}; the store is "
            "truncated: fetch it again, or write it with write_empty_chunks=True"
        )


def cut_chunks(array: zarr.Array, rows: range | None = None) -> Iterator[Chunk]:
    """Find chunk files of Blosc, or those of some rows, that are shorter than their header says.

    Blosc reads on behind the end of one whose numbers could not be compressed. The files of an archive have checksums.
    """
    store, codecs = array.store_path.store, array.compressors
    if isinstance(store, LocalStore) and codecs and type(codecs[-1]).__name__.startswith("Blosc") and not array.shards:
        for chunk in chunks_of(array, rows):
            with open(store.root / chunk.file, "rb") as file:
                header = file.read(BLOSC_HEADER)
            if int.from_bytes(header[12:], "little") > (store.root / chunk.file).stat().st_size:
                yield chunk


def undecodable_chunks(array: zarr.Array) -> Iterator[str]:
    """Name every chunk file that cannot be decoded, reading one at a time."""
    cut = list(cut_chunks(array))
    for chunk in chunks_of(array):
        try:
            if chunk in cut:
                raise ValueError("it is cut short")
            array[chunk.region]
        except Exception as error:  # every codec has its own exception
            yield f"{chunk} cannot be decoded ({error})"


def read_rows(array: zarr.Array, rows: np.ndarray | None = None) -> np.ndarray:
    """Read an array, or some of its rows in increasing order, in the machine's byte order.

    Raises StoreError if a chunk file cannot be decoded, naming it.
    """
    try:
        span = range(int(rows[0]), int(rows[-1]) + 1) if rows is not None and len(rows) else None
        if any(cut_chunks(array, span)):
            raise ValueError("it is cut short")
        if rows is None:
            values = array[:]
        elif len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            values = array[int(rows[0]) : int(rows[-1]) + 1]
        else:
            values = array.oindex[rows]
        return np.asarray(values, np.dtype(array.dtype).newbyteorder("="))
    except Exception as error:  # every codec has its own exception
        path = re.sub(r"^\w+://", "", str(array.store_path.store))
        problem = next(undecodable_chunks(array), f"{array.path} cannot be read ({error})")
        raise StoreError(f"{path}: {problem}") from error
