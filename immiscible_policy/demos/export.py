"""Write demonstrations as a dataset of LeRobot's format 3, which LeRobot trains from as it is.

Layout of what is written, for T steps of E episodes::

    DIR/
        meta/info.json                              features, counts, rate
        meta/stats.json                             minimum, maximum, mean, ... of each feature
        meta/tasks.parquet                          the one task, in words
        meta/episodes/chunk-000/file-000.parquet    E rows: length, place of its steps, its own statistics
        data/chunk-000/file-000.parquet             T rows, one row group for each episode

The policy's features are those of lerobot/pusht_keypoints: `observation.state`, the agent's x, y;
`observation.environment_state`, the T's eight corners in the world frame (see `immiscible_envs.lerobot`); `action`. The
store's own arrays stand beside them as `store.NAME`, which policies ignore: `convert` reads them back bit for
bit, where corners alone would give the pose to float32 rounding.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from immiscible_envs.geometry import place
from immiscible_envs.lerobot import CORNERS, TASK
from immiscible_envs.simulation import CONTROL_HZ
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable, unknown
from immiscible_policy.demos.frames import CAMERA, rendered_frames, stored_frames
from immiscible_policy.demos.lerobot import STORED, pyarrow_parquet
from immiscible_policy.demos.store import Demonstrations, open_store

FORMAT = "v3.0"
IMAGE = "observation.image"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED_FRAMES = 256
"""Statistics of pictures are those of so many frames at most, evenly spaced."""
IMAGES = ("none", "stored", "rendered")
NAMES = {
    "observation.state": ["agent_x", "agent_y"],
    "observation.environment_state": [f"corner{i}_{axis}" for i in range(8) for axis in "xy"],
    "action": ["target_x", "target_y"],
}

USAGE = """usage: python -m immiscible_policy.demos export path=STORE out=DIR [images=stored|rendered]

Writes a store as a dataset of LeRobot's format 3; `convert` turns it back into the same arrays. Needs pyarrow:
pip install 'immiscible-policy[lerobot]'

example:
  python -m immiscible_policy.demos export path=data/pusht_expert.zarr out=pusht_expert
  lerobot-train --policy.type=diffusion --dataset.repo_id=local/pusht_expert --dataset.root=pusht_expert"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "store of demonstrations (a .zarr directory)"),
    "out": Option(Path, REQUIRED, "directory to create"),
    "images": Option(str, "none", "none, stored (the store's own) or rendered (drawn from the states)"),
}


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        CommandError: If a word is unusable.
    """
    words = parse(argv, OPTIONS, USAGE)
    if words["images"] not in IMAGES:
        raise CommandError(unknown("images", words["images"], IMAGES))
    demos = open_store(words["path"])
    export(demos, words["out"], words["images"])
    print(f"{words['out']}: {demos.n_episodes} episodes, {len(demos):,} steps")


def export(demos: Demonstrations, out: Path, images: str = "none") -> None:
    """Write a dataset; it appears whole or not at all.

    Args:
        demos: The episodes.
        out: Directory to create.
        images: What `observation.image` shows: `none` for no such feature, `stored` or `rendered` (`demos.frames`).

    Raises:
        CommandError: If `out` exists or cannot be created, or pyarrow is not installed.
        ValueError: If stored images are asked for and the store holds none.
    """
    pyarrow_parquet("export")
    if out.exists():
        raise CommandError(f"{out}: exists already; choose another path or remove it first")
    require_writable("out", out)
    frames = frames_of(demos, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch, "dataset")
        write(draft, demos, frames)
        draft.rename(out)


def frames_of(demos: Demonstrations, images: str) -> np.ndarray | None:
    """The pictures that are asked for, (T, H, W, 3) uint8."""
    if images == "none":
        return None
    return (stored_frames(demos) if images == "stored" else rendered_frames(demos))[CAMERA].numpy()


def write(root: Path, demos: Demonstrations, frames: np.ndarray | None) -> None:
    """Write all files below `root`; frames are (T, H, W, 3) uint8 or None."""
    columns = columns_of(demos)
    own = [{key: values[steps] for key, values in columns.items()} for steps in demos.episodes]
    pictures = [None if frames is None else frames[steps] for steps in demos.episodes]
    write_steps(root / "data" / CHUNK_FILE.format(chunk_index=0, file_index=0), own, pictures)
    write_episodes(root / "meta/episodes" / CHUNK_FILE.format(chunk_index=0, file_index=0), own, pictures)
    write_tasks(root / "meta/tasks.parquet")
    write_json(root / "meta/stats.json", statistics(columns, frames))
    write_json(root / "meta/info.json", info(columns, demos.n_episodes, frames))


def columns_of(demos: Demonstrations) -> dict[str, np.ndarray]:
    """What each step holds besides pictures, (T,) or (T, width) by feature."""
    frame = np.concatenate([np.arange(n) for n in demos.lengths])
    corners = place(CORNERS, demos.state[:, 2:].astype(np.float64)).reshape(len(demos), -1)  # (T, 16)
    stored = {name: getattr(demos, name.removeprefix("store.")) for name in STORED}
    return {
        "observation.state": demos.state[:, :2].astype(np.float32),
        "observation.environment_state": corners.astype(np.float32),
        "action": demos.action.astype(np.float32),
        **{name: values.reshape(len(demos), *STORED[name]) for name, values in stored.items() if values is not None},
        "timestamp": (frame / CONTROL_HZ).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(demos.n_episodes), demos.lengths),
        "index": np.arange(len(demos)),
        "task_index": np.zeros(len(demos), np.int64),
    }


def info(columns: Mapping[str, np.ndarray], n_episodes: int, frames: np.ndarray | None) -> dict[str, Any]:
    """The dataset's description, as meta/info.json holds it."""
    features = {key: feature(key, values) for key, values in columns.items()}
    if frames is not None:
        axes = ["height", "width", "channels"]
        features[IMAGE] = {"dtype": "image", "shape": list(frames.shape[1:]), "names": axes}
    return {
        "codebase_version": FORMAT,
        "robot_type": "pusht",
        "total_episodes": n_episodes,
        "total_frames": len(columns["index"]),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{n_episodes}"},
        "data_path": f"data/{CHUNK_FILE}",
        "video_path": None,
        "features": features,
    }


def feature(name: str, values: np.ndarray) -> dict[str, Any]:
    """Type, width and component names of a column."""
    return {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": NAMES.get(name)}


def statistics(columns: Mapping[str, np.ndarray], frames: np.ndarray | None) -> dict[str, dict[str, Any]]:
    """What LeRobot normalises by, of each feature; pixels count from 0 to 1, channel by channel, (3, 1, 1)."""
    found: dict[str, dict[str, Any]] = {
        key: moments(values.reshape(len(values), -1)) for key, values in columns.items()
    }
    if frames is not None:
        sampled = frames[:: -(-len(frames) // SAMPLED_FRAMES)]
        pixels = moments(sampled.reshape(-1, 3) / 255)
        shaped = {key: np.reshape(value, (3, 1, 1)).tolist() for key, value in pixels.items() if key != "count"}
        found[IMAGE] = shaped | {"count": [len(sampled)]}
    return found


def moments(values: np.ndarray) -> dict[str, list[float]]:
    """Statistics of each component of values (n, width); the quantiles are exact."""
    found = {"min": values.min(axis=0), "max": values.max(axis=0)}
    found |= {"mean": values.mean(axis=0, dtype=np.float64), "std": values.std(axis=0, dtype=np.float64)}
    found |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {key: value.tolist() for key, value in found.items()} | {"count": [len(values)]}


def write_steps(path: Path, own: list[dict[str, np.ndarray]], pictures: list[np.ndarray | None]) -> None:
    """Write every step.

    Args:
        path: File to create.
        own: The columns of each episode.
        pictures: The frames of each episode (n, H, W, 3), or None for each.
    """
    parquet = pyarrow_parquet("export")
    path.parent.mkdir(parents=True)
    with parquet.ParquetWriter(path, table(own[0], pictures[0]).schema) as writer:
        for columns, frames in zip(own, pictures, strict=True):
            writer.write_table(table(columns, frames))


def table(columns: Mapping[str, np.ndarray], frames: np.ndarray | None) -> Any:
    """Some steps as an Arrow table: numbers, lists of fixed width, and pictures as PNG files."""
    import pyarrow

    arrays = {
        key: pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        if values.ndim > 1
        else pyarrow.array(values)
        for key, values in columns.items()
    }
    if frames is not None:
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        arrays[IMAGE] = pyarrow.array([{"bytes": png(frame), "path": None} for frame in frames], kind)
    return pyarrow.table(arrays)


def png(frame: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="png")
    return file.getvalue()


def write_episodes(path: Path, own: list[dict[str, np.ndarray]], pictures: list[np.ndarray | None]) -> None:
    """Write one row about each episode; the arguments are those of `write_steps`."""
    import pyarrow

    path.parent.mkdir(parents=True)
    rows = [episode_row(columns, frames) for columns, frames in zip(own, pictures, strict=True)]
    pyarrow_parquet("export").write_table(pyarrow.Table.from_pylist(rows), path)


def episode_row(columns: Mapping[str, np.ndarray], frames: np.ndarray | None) -> dict[str, Any]:
    """Where an episode lies, and its statistics."""
    index = columns["index"]
    row = {
        "episode_index": int(columns["episode_index"][0]),
        "tasks": [TASK],
        "length": len(index),
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": int(index[0]),
        "dataset_to_index": int(index[-1]) + 1,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    found = statistics(columns, frames)
    return row | {f"stats/{key}/{name}": value for key, each in found.items() for name, value in each.items()}


def write_tasks(path: Path) -> None:
    """Write the one task, so that pandas reads a frame whose index is the task in words."""
    import pyarrow

    rows = pyarrow.table({"task_index": [0], "task": [TASK]})
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
    pyarrow_parquet("export").write_table(rows.replace_schema_metadata({"pandas": json.dumps(described)}), path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that people can read, too."""
    path.write_text(json.dumps(value, indent=4) + "\n")
