"""The chunk files of a zarr array: which ones it should have, which are missing or damaged, and reading them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import zarr


class StoreError(ValueError):
    """A store of demonstrations that cannot be read or written as it is; the message is one line."""


@dataclass(frozen=True)
class Chunk:
    """One chunk file of an array: its path inside the store, and the part of the array that it holds."""

    file: str
    region: tuple[slice, ...]

    def __str__(self) -> str:
        return f"chunk file {self.file} (steps {self.region[0].start} to {self.region[0].stop - 1})"


def chunks_of(array: zarr.Array) -> list[Chunk]:
    """Every chunk file that a complete array has."""
    sides = [
        [slice(start, min(start + size, length)) for start in range(0, length, size)]
        for length, size in zip(array.shape, array.shards or array.chunks, strict=True)
    ]
    positions, regions = itertools.product(*(range(len(side)) for side in sides)), itertools.product(*sides)
    return [
        Chunk(f"{array.path}/{array.metadata.encode_chunk_key(position)}", region)
        for position, region in zip(positions, regions, strict=True)
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


def undecodable_chunks(array: zarr.Array) -> Iterator[str]:
    """Name every chunk file that cannot be decoded, reading one at a time."""
    for chunk in chunks_of(array):
        try:
            array[chunk.region]
        except Exception as error:  # every codec has its own exception
            yield f"{chunk} cannot be decoded ({error})"


def read_rows(array: zarr.Array, rows: np.ndarray | None = None) -> np.ndarray:
    """Read an array, or some of its rows in increasing order, in the machine's byte order.

    Raises StoreError if a chunk file cannot be decoded, naming it.
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
        path = re.sub(r"^\w+://", "", str(array.store_path.store))
        problem = next(undecodable_chunks(array), f"{array.path} cannot be read ({error})")
        raise StoreError(f"{path}: {problem}") from error
