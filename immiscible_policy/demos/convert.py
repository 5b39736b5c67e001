"""Turn a data set of LeRobot into a replay store.

Arrays that `export` wrote as `store.KEY` are taken bit for bit. From the features of any other data set the task makes
the arrays that it needs; `task=none` keeps them. Cameras are copied unless the task has columns of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from immiscible_policy.cli import require_new
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.frames import Frames
from immiscible_policy.demos.lerobot import OWN, Arrays, open_dataset, read_info
from immiscible_policy.demos.store import write_store


def convert(
    path: Path,
    out: Path,
    task: str,
    fps: int | None,
    columns: Mapping[str, Column],
    from_features: Callable[[Arrays], Arrays],
) -> tuple[dict[str, np.ndarray | Frames], np.ndarray]:
    """Convert a dataset and return what was written: the arrays and cameras by name, and the episode ends (E,).

    It must have `fps` steps per second, unless that is None. The store states its steps per second and its `task`.
    `columns` are what its arrays should be; `from_features` makes them of features (T, width) that `export` did not
    write.

    Raises:
        CommandError: If `out` exists or cannot be created, or pyarrow is not installed.
        StoreError: If the dataset cannot be read, is incomplete, or does not tell what the store has to hold.
    """
    require_new("out", out)
    info = read_info(path)
    if fps is not None and info.fps != fps:
        raise StoreError(f"{path}: recorded at {info.fps:g} Hz, task={task} acts at {fps} Hz; task=none keeps any rate")
    own = {key for key, feature in info.features.items() if feature.name.startswith(OWN)}
    demos = open_dataset(path, {key: columns.get(key, Column()) for key in own}, cameras=() if columns else None)
    counters = {
        "episode_index": np.repeat(np.arange(demos.n_episodes), demos.lengths),
        "frame_index": np.concatenate([np.arange(length) for length in demos.lengths]),
    }
    try:
        numbers = demos.arrays if own else from_features({**demos.arrays, **counters})
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None
    arrays: dict[str, np.ndarray | Frames] = {**numbers, **demos.frames}
    if not arrays:
        raise StoreError(f"{path}: has neither numbers nor cameras")
    attrs = {"source": f"LeRobot dataset {path.resolve().name}, format {info.version}", "fps": info.fps, "task": task}
    write_store(out, arrays, demos.episode_ends, attrs, columns)
    return arrays, demos.episode_ends
