"""Add episodes to a store one at a time, as they are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.store import write_store


def recorded_ends(path: Path) -> NDArray[np.int64]:
    """The step after each episode's last (E,); none where there is no store."""
    if not path.exists():
        return np.empty(0, np.int64)
    ends = np.asarray(zarr.open_array(path, path="meta/episode_ends", mode="r")[:])
    return ends[ends > 0]  # an interrupted `append_episode` may leave a 0 behind


def append_episode(path: Path, episode: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any] | None = None) -> None:
    """Add an episode to a store, which is created with the first one.

    The episode is in the store once `meta/episode_ends` names its end, which is written last. What an interrupted call
    left behind lies after the last such end and is overwritten by the next episode.

    Its arrays have n >= 1 rows each; `attrs` (JSON values) go to a store that is created.

    Raises:
        StoreError: If the arrays are not those of the store, or do not fit together; nothing is written then.
    """
    ends, rows = recorded_ends(path), {len(values) for values in episode.values()}
    if len(rows) != 1 or rows == {0}:
        raise StoreError(f"{path}: an episode has arrays of the same length, at least 1; got {sorted(rows)}")
    if not len(ends):
        write_store(path, episode, [*rows], attrs)
        return
    root, first = zarr.open_group(path, mode="r+"), int(ends[-1])
    stored = dict(root.require_group("data").arrays())
    if {name: array.shape[1:] for name, array in stored.items()} != {n: v.shape[1:] for n, v in episode.items()}:
        shapes = ", ".join(f"{name} {values.shape[1:]}" for name, values in episode.items())
        raise StoreError(f"{path}: an episode of {shapes} does not fit the arrays of the store, {', '.join(stored)}")
    with zarr.config.set({"array.write_empty_chunks": True}):  # a missing chunk file means truncation
        added = [(f"data/{name}", first, values) for name, values in episode.items()]
        for name, row, values in [*added, ("meta/episode_ends", len(ends), np.array([first + rows.pop()]))]:
            array = root[name]
            assert isinstance(array, zarr.Array)
            array.resize((row + len(values), *array.shape[1:]))
            array[row:] = values
