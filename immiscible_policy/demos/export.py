"""Write demonstrations as a dataset of LeRobot's format 3, which LeRobot trains from as it is.

Written for T steps of E episodes::

    meta/info.json                              features, counts, rate
    meta/stats.json                             minimum, maximum, mean, ... of each feature
    meta/tasks.parquet                          the one task, in words
    meta/episodes/chunk-000/file-000.parquet    E rows: length, place of its steps, its own statistics
    data/chunk-000/file-000.parquet             T rows, one row group for each episode

The policy's features are the task's. The store's own arrays stand beside them as `store.KEY`, which policies ignore:
`convert` reads their numbers back bit for bit, those of a step in a row.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from immiscible_policy.cli import require_new
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.lerobot import OWN
from immiscible_policy.demos.parquet import pyarrow_parquet

FORMAT = "v3.0"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Columns = Mapping[str, np.ndarray]


class Feature(NamedTuple):
    """What a policy reads of each step: (T, width) numbers, and what they are called."""

    values: np.ndarray
    names: Sequence[str] | None = None


def named_features(demos: Demonstrations, obs: Sequence[str], action: str) -> dict[str, Feature]:
    """`observation.state`, the arrays of these names one after another, and `action`, by LeRobot's names."""
    widths = {key: math.prod(demos[key].shape[1:]) for key in (*obs, action)}
    names = {key: [key] if width == 1 else [f"{key}_{i}" for i in range(width)] for key, width in widths.items()}
    rows = {key: demos[key].reshape(len(demos), -1).astype(np.float32) for key in widths}
    features = {"action": Feature(rows[action], names[action])}
    if obs:
        state = np.concatenate([rows[key] for key in obs], axis=1)
        features["observation.state"] = Feature(state, [name for key in obs for name in names[key]])
    return features


def export(
    demos: Demonstrations,
    out: Path,
    features: Mapping[str, Feature],
    frames: Mapping[str, np.ndarray] | None = None,
    *,
    robot: str,
    fps: float,
    instruction: str,
) -> None:
    """Write a dataset; it appears whole or not at all.

    Policies read `features`, by LeRobot's names, and `frames` (T, H, W, 3) uint8 by camera; a single camera is called
    `observation.image`, several `observation.images.CAMERA`. The instruction is the task in words.

    Raises:
        CommandError: If `out` exists or cannot be created, or pyarrow is not installed.
    """
    parquet = pyarrow_parquet("export")
    require_new("out", out)
    frames, names = frames or {}, {name: feature.names for name, feature in features.items()}
    pictures = {
        "observation.image" if len(frames) == 1 else f"observation.images.{_plain(camera)}": shown
        for camera, shown in frames.items()
    }
    frame = np.concatenate([np.arange(n) for n in demos.lengths])
    columns: Columns = {
        **{name: feature.values for name, feature in features.items()},
        **{f"{OWN}{key}": flat(values) for key, values in demos.arrays.items()},
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(demos.n_episodes), demos.lengths),
        "index": np.arange(len(demos)),
        "task_index": np.zeros(len(demos), np.int64),
    }
    own = [{key: values[steps] for key, values in columns.items()} for steps in demos.episodes]
    shown = [{key: values[steps] for key, values in pictures.items()} for steps in demos.episodes]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch, "dataset")
        place = CHUNK_FILE.format(chunk_index=0, file_index=0)
        for folder in ("data", "meta/episodes"):
            (draft / folder / place).parent.mkdir(parents=True)
        with parquet.ParquetWriter(draft / "data" / place, table(own[0], shown[0]).schema) as writer:
            for numbers, images in zip(own, shown, strict=True):
                writer.write_table(table(numbers, images))
        parquet.write_table(episodes_table(own, shown, instruction), draft / "meta/episodes" / place)
        parquet.write_table(tasks_table(instruction), draft / "meta/tasks.parquet")
        kinds: list[tuple[str, str, list[int], list[str] | None]] = [
            (key, values.dtype.name, list(values.shape[1:]) or [1], list(names.get(key) or ()) or None)
            for key, values in columns.items()
        ]
        kinds += [(key, "image", list(p.shape[1:]), ["height", "width", "channels"]) for key, p in pictures.items()]
        described = {
            "codebase_version": FORMAT,
            "robot_type": robot,
            "total_episodes": demos.n_episodes,
            "total_frames": len(demos),
            "total_tasks": 1,
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(fps) if fps == int(fps) else fps,
            "splits": {"train": f"0:{demos.n_episodes}"},
            "data_path": f"data/{CHUNK_FILE}",
            "video_path": None,
            "features": {key: {"dtype": kind, "shape": shape, "names": names} for key, kind, shape, names in kinds},
        }
        for name, content in (("stats", statistics(columns, pictures)), ("info", described)):
            (draft / f"meta/{name}.json").write_text(json.dumps(content, indent=4) + "\n")
        draft.rename(out)


def _plain(camera: str) -> str:
    """A camera's name without what LeRobot puts before it."""
    return camera.removeprefix("observation.").removeprefix("images.")


def flat(values: np.ndarray) -> np.ndarray:
    """An array (T, ...) as (T, width), or (T,) of single numbers."""
    width = math.prod(values.shape[1:])
    return values.reshape(len(values), width) if width > 1 else values.reshape(len(values))


def statistics(columns: Columns, pictures: Columns) -> dict[str, dict[str, Any]]:
    """What LeRobot normalises by, of each feature; pixels count from 0 to 1, channel by channel, (3, 1, 1).

    Statistics of pictures are those of 256 frames at most, evenly spaced.
    """
    result: dict[str, Any] = {key: moments(values.reshape(len(values), -1)) for key, values in columns.items()}
    for key, frames in pictures.items():
        sampled = frames[:: -(-len(frames) // 256)]
        pixels = moments(sampled.reshape(-1, 3) / 255)
        shaped = {name: np.reshape(value, (3, 1, 1)).tolist() for name, value in pixels.items() if name != "count"}
        result[key] = shaped | {"count": [len(sampled)]}
    return result


def moments(values: np.ndarray) -> dict[str, list[float]]:
    """Statistics of each component of values (n, width), true counting as 1; the quantiles are exact."""
    values = values.astype(np.float64) if values.dtype == bool else values
    result = {"min": values.min(axis=0), "max": values.max(axis=0)}
    result |= {"mean": values.mean(axis=0, dtype=np.float64), "std": values.std(axis=0, dtype=np.float64)}
    result |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {key: value.tolist() for key, value in result.items()} | {"count": [len(values)]}


def table(columns: Columns, pictures: Columns) -> Any:
    """Some steps as an Arrow table: numbers, lists of fixed width, and pictures as PNG files."""
    import pyarrow

    arrays = {
        key: pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        if values.ndim > 1
        else pyarrow.array(values)
        for key, values in columns.items()
    }
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for key, frames in pictures.items():
        files = [io.BytesIO() for _ in frames]
        for frame, file in zip(frames, files, strict=True):
            Image.fromarray(frame).save(file, format="png")
        arrays[key] = pyarrow.array([{"bytes": file.getvalue(), "path": None} for file in files], kind)
    return pyarrow.table(arrays)


def episodes_table(own: Sequence[Columns], pictures: Sequence[Columns], instruction: str) -> Any:
    """One row about each episode: where it lies, and its statistics."""
    import pyarrow

    rows = [
        {
            "episode_index": int(columns["episode_index"][0]),
            "tasks": [instruction],
            "length": len(columns["index"]),
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": int(columns["index"][0]),
            "dataset_to_index": int(columns["index"][-1]) + 1,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **{
                f"stats/{key}/{name}": value
                for key, measured in statistics(columns, frames).items()
                for name, value in measured.items()
            },
        }
        for columns, frames in zip(own, pictures, strict=True)
    ]
    return pyarrow.Table.from_pylist(rows)


def tasks_table(instruction: str) -> Any:
    """The one task, so that pandas reads a frame whose index is the task in words."""
    import pyarrow

    rows = pyarrow.table({"task_index": [0], "task": [instruction]})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, (kind, numpy) in kinds.items()
        ],
        "pandas_version": "2.0.0",
    }
    return rows.replace_schema_metadata({"pandas": json.dumps(described)})
