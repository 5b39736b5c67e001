"""Add episodes to a store one at a time, as they are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from immiscible_policy.demos.checks import finite_problems, is_camera
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.store import write_store


def recorded_ends(path: Path) -> NDArray[np.int64]:
    """The step after each episode's last (E,); none where there is no store."""
    if not path.exists():
        return np.empty(0, np.int64)
    ends = np.asarray(zarr.open_array(path, path="meta/episode_ends", mode="r")[:])
    return ends[ends > 0]  # an interrupted `append_episode` may leave a 0 behind


def drop_unfinished(path: Path) -> dict[str, zarr.Array]:
    """Cut the arrays of a store off where its last episode ends, as an interrupted call left more, and return them."""
    last = int(recorded_ends(path)[-1])
    arrays = dict(zarr.open_group(path, mode="r+", use_consolidated=False).require_group("data").arrays())
    for array in arrays.values():
        if array.shape[0] != last:
            array.resize((last, *array.shape[1:]))
    return arrays


def append_episode(path: Path, episode: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any] | None = None) -> None:
    """Add an episode to a store, which is created with the first one.

    The episode is in the store once `meta/episode_ends` names its end, which is written last. What an interrupted call
    left behind lies after the last such end and is overwritten by the next episode.

    Its arrays have n >= 1 rows each; `attrs` (JSON values) go to a store that is created.

    Raises:
        StoreError: If the arrays are not those of the store, do not fit together, or are not finite; nothing is
            written then.
    """
    ends, rows = recorded_ends(path), {len(values) for values in episode.values()}
    if len(rows) != 1 or rows == {0}:
        raise StoreError(f"{path}: an episode has arrays of the same length, at least 1; got {sorted(rows)}")
    if not len(ends):
        write_store(path, episode, [*rows], attrs)
        return
    root, first, n = zarr.open_group(path, mode="r+", use_consolidated=False), int(ends[-1]), rows.pop()
    stored = drop_unfinished(path)
    if {name: (array.shape[1:], array.dtype) for name, array in stored.items()} != {
        name: (values.shape[1:], values.dtype) for name, values in episode.items()
    }:
        given, there = (_described(arrays) for arrays in (episode, stored))
        raise StoreError(f"{path}: an episode of {given} does not fit the arrays of the store, {there}")
    for name, values in episode.items():
        for problem in finite_problems(name, values, np.array([n])) if not is_camera(values) else ():
            raise StoreError(f"{path}: {problem}")
    with zarr.config.set({"array.write_empty_chunks": True}):  # a missing chunk file means truncation
        added = [(f"data/{name}", first, values) for name, values in episode.items()]
        for name, row, values in [*added, ("meta/episode_ends", len(ends), np.array([first + n]))]:
            array = root[name]
            assert isinstance(array, zarr.Array)
            array.resize((row + len(values), *array.shape[1:]))
            array[row:] = values


def _described(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {values.shape[1:]} {values.dtype}" for name, values in arrays.items())
