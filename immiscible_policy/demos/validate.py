"""Everything that is wrong with a store of demonstrations, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import zarr

from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import Column, is_camera
from immiscible_policy.demos.chunks import StoreError, chunks_of, missing_chunks, undecodable_chunks
from immiscible_policy.demos.store import Demonstrations, open_arrays, read_store


def problems(
    path: Path,
    columns: Mapping[str, Column] | None = None,
    meaning: Callable[[Demonstrations], Iterator[str]] = lambda demos: iter(()),
) -> Iterator[str]:
    """Find everything that is wrong with a store, one line each; images are read, a chunk at a time.

    Values are looked at once structure, chunk files and episodes are in order; before that they mean nothing.
    Then `meaning` finds values, all finite, that the task cannot have given.
    """
    columns = columns or {}
    try:
        stored, ends_array = open_arrays(path, columns)
    except StoreError as error:
        yield str(error)
        return
    wrong = list(checks.structure_problems(stored, columns))
    for array in (ends_array, *stored.values()):
        wrong += (missing := list(missing_chunks(path, array)))
        if not missing and not is_camera(array):
            wrong += undecodable_chunks(array)
    if not wrong:
        ends = np.asarray(ends_array[:])
        wrong += checks.episode_problems(ends, next(iter(stored.values())).shape[0])
    yield from wrong
    if wrong:
        return
    demos = read_store(path, stored, ends)
    for name, values in demos.arrays.items():
        wrong += checks.finite_problems(name, values, ends)
    yield from wrong or meaning(demos)
    for camera in demos.frames:
        yield from image_problems(stored[camera], ends)


def image_problems(array: zarr.Array, ends: np.ndarray) -> Iterator[str]:
    """Find images that cannot be decoded or whose pixels leave 0..255, a chunk at a time."""
    name, brightest = array.path.removeprefix("data/"), 0.0
    for chunk in chunks_of(array):
        try:
            images = np.asarray(array[chunk.region])
        except Exception as error:  # every codec has its own exception
            yield f"{chunk} cannot be decoded ({error})"
            continue
        bad = ~((images >= 0) & (images <= 255))  # NaN fails both
        expected = f"; pixels should be 0..255 ({chunk})"
        yield from checks.flagged(name, bad, images, ends, expected, first=chunk.region[0].start)
        brightest = max(brightest, float(images.max()))
    if 0 < brightest <= 1:
        yield f"data/{name} holds pixels of 0..1; they should be 0..255"
