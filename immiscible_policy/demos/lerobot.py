"""Reading a data set in LeRobot's format 2 or 3, in place.

What is read of T frames in E episodes::

    meta/info.json                     format, frames per second, and of each feature its dtype and shape
    data/**/*.parquet                  a row per frame: format 2 has a file per episode, format 3 many in a file
    videos/**/*.mp4                    what cameras saw, where it does not lie in the parquet files as pictures
    meta/episodes/**/*.parquet         format 3: in which video, and where in it, each episode begins

The arrays are the features of numbers under LeRobot's names, such as `observation.state`, without its counters; those
that `export` wrote as `store.KEY` are called KEY. Features of three colour channels are cameras.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.frames import Frames
from immiscible_policy.demos.parquet import pyarrow_parquet
from immiscible_policy.demos.pictures import TableOfPictures, Videos

OWN = "store."
"""Before the keys of a store's own arrays among the features."""
COUNTERS = ("episode_index", "frame_index")
BOOKKEEPING = (*COUNTERS, "index", "task_index", "timestamp")
PICTURES = ("video", "image")
VIDEO_PATHS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
"""Where the videos of each format lie, unless info.json says otherwise."""

Arrays = dict[str, np.ndarray]


class StoredFeature(NamedTuple):
    """What a step of a feature holds."""

    name: str  # LeRobot's
    dtype: str
    shape: tuple[int, ...]  # of pictures (H, W, channels)

    @property
    def is_camera(self) -> bool:
        """Whether it shows coloured pictures."""
        return self.dtype in PICTURES and self.shape[-1:] == (3,)

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.dtype.startswith(("float", "int", "uint", "bool"))


@dataclass(frozen=True)
class Info:
    """What `meta/info.json` says."""

    version: str
    fps: float
    frames: int
    features: dict[str, StoredFeature]  # by key, LeRobot's counters left out
    content: dict[str, Any]

    @property
    def format(self) -> int:
        """2 or 3."""
        return int(self.version[1])


class Rows(NamedTuple):
    """The rows of all parquet files, in the order of episodes and frames."""

    columns: Arrays  # by feature, (T, ...), and the counters (T,)
    files: list[Path]
    file: np.ndarray  # (T,) the file that each row lies in
    row: np.ndarray  # (T,) and its place there


def is_dataset(path: Path) -> bool:
    """Whether a directory looks like a data set of LeRobot."""
    return (path / "meta" / "info.json").is_file()


def open_dataset(path: Path, columns: Mapping[str, Column], cameras: Collection[str] | None = None) -> Demonstrations:
    """Read a data set; pictures stay on disk. `columns` and `cameras` are those of `open_store`.

    Raises:
        CommandError: If pyarrow is not installed.
        StoreError: If it cannot be read or is incomplete, or an array does not fit.
    """
    info = read_info(path)
    numbers = {key: feature for key, feature in info.features.items() if feature.is_number}
    read = {key: numbers[key] for key in columns if key in numbers} if columns else numbers
    rows = read_rows(path, read.values())
    ends = episode_ends(path, rows.columns, info)
    arrays = {
        key: rows.columns[feature.name].reshape(len(rows.row), *_row(feature, columns.get(key, Column())))
        for key, feature in read.items()
    }
    frames = {
        key: Frames.all_of(_pictures(path, info, feature, rows, ends))
        for key, feature in info.features.items()
        if feature.is_camera and (cameras is None or key in cameras)
    }
    for problem in checks.structure_problems({**arrays, **frames}, columns):
        raise StoreError(f"{path}: {problem.replace('data/', '')}")
    return Demonstrations(path, arrays, ends.astype(np.int64), frames, info.fps)


def read_info(path: Path) -> Info:
    """Read a data set's description; a StoreError if it is missing or broken, or of another format."""
    file = path / "meta" / "info.json"
    try:
        content = json.loads(file.read_text())
        version, fps = str(content["codebase_version"]), float(content["fps"])
        features = [
            StoredFeature(name, str(feature.get("dtype", "float32")), _shape(feature))
            for name, feature in content["features"].items()
            if name not in BOOKKEEPING
        ]
        frames = int(content.get("total_frames", 0))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not a LeRobot dataset, meta/info.json is missing") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file}: not a dataset's description ({error})") from error
    if not version.startswith(("v2.", "v3.")):
        raise StoreError(f"{path}: format {version}; formats v2 and v3 can be read")
    own = sorted(features, key=lambda feature: feature.name.startswith(OWN))  # a store's own arrays count last, and win
    return Info(version, fps, frames, {feature.name.removeprefix(OWN): feature for feature in own}, content)


def read_rows(path: Path, features: Iterable[StoredFeature]) -> Rows:
    """Read features (T, ...) and the counters (T,) from the parquet files of a data set.

    Raises:
        CommandError: If pyarrow is not installed.
        StoreError: If there is no parquet file, or one cannot be read or lacks a column.
    """
    wanted = [*features, *(StoredFeature(name, "int64", ()) for name in COUNTERS)]
    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise StoreError(f"{path}: no parquet file under data/")
    tables = [read_file(file, wanted) for file in files]
    columns = {feature.name: np.concatenate([table[feature.name] for table in tables]) for feature in wanted}
    lengths = [len(table[COUNTERS[0]]) for table in tables]
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    file = np.repeat(np.arange(len(files)), lengths)
    row = np.concatenate([np.arange(length) for length in lengths])
    return Rows({name: values[order] for name, values in columns.items()}, files, file[order], row[order])


def read_file(file: Path, features: Iterable[StoredFeature]) -> Arrays:
    """Read features (n, ...) of a parquet file; a StoreError if it cannot be read or lacks one of that shape."""
    parquet = pyarrow_parquet("a data set of LeRobot")
    import pyarrow

    read = {}
    try:
        opened = parquet.ParquetFile(file)
        for feature in features:
            if feature.name not in opened.schema_arrow.names:
                raise StoreError(f"{file}: has no column {feature.name}")
        table = opened.read(columns=[feature.name for feature in features])
    except (pyarrow.ArrowException, OSError) as error:
        raise StoreError(f"{file}: cannot be read ({error})") from error
    for feature in features:
        column = table[feature.name].combine_chunks()
        while isinstance(column, pyarrow.ListArray | pyarrow.FixedSizeListArray | pyarrow.LargeListArray):
            column = column.flatten()
        values = np.asarray(column)
        count = math.prod(feature.shape)
        if values.dtype.kind not in ("iu" if feature.name in COUNTERS else "fiub") or values.size != len(table) * count:
            raise StoreError(f"{file}: column {feature.name} does not hold {count} numbers per frame")
        read[feature.name] = values.reshape(len(table), *feature.shape)
    return read


def episode_ends(path: Path, columns: Arrays, info: Info) -> np.ndarray:
    """Find where episodes end, (E,). Raises StoreError if a frame or an episode is missing."""
    episode, frame = columns["episode_index"], columns["frame_index"]
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    ends = np.append(first[1:], len(episode))
    expected = np.arange(len(episode)) - np.repeat(first, np.diff(ends, prepend=0))
    if (wrong := frame != expected).any():
        step = int(np.argmax(wrong))
        raise StoreError(f"{path}: episode {episode[step]} has no frame {expected[step]}")
    for what, count in (("total_episodes", len(ends)), ("total_frames", len(episode))):
        if info.content.get(what, count) != count:
            raise StoreError(f"{path}: {what} should be {info.content[what]}, the parquet files hold {count}")
    if not len(episode):
        raise StoreError(f"{path}: the parquet files have no frames")
    return ends


def _row(feature: StoredFeature, column: Column) -> tuple[int, ...]:
    """The shape of a step: the column's, of which LeRobot keeps the numbers alone, where there are as many."""
    shape = () if column.shape is None else tuple(side or 0 for side in column.shape)
    return shape if shape and math.prod(shape) == math.prod(feature.shape) else feature.shape


def _shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a step; of pictures with the channels last."""
    shape = tuple(int(side) for side in feature["shape"])
    if feature.get("dtype") in PICTURES and len(shape) == 3 and shape[0] == 3 != shape[2]:
        return (*shape[1:], 3)
    return shape


def _pictures(path: Path, info: Info, feature: StoredFeature, rows: Rows, ends: np.ndarray) -> Videos | TableOfPictures:
    """What a camera recorded: pictures in the parquet files, or videos."""
    height, width = feature.shape[:2]
    if feature.dtype == "image":
        return TableOfPictures(feature.name, (height, width), rows.files, rows.file, rows.row)
    episodes = rows.columns["episode_index"][ends - 1]  # (E,) their numbers
    files, first = _videos(path, info, feature.name, episodes)
    lengths = np.diff(ends, prepend=0)
    names = sorted(set(files))
    file = np.repeat([names.index(name) for name in files], lengths)
    frame = np.repeat(first, lengths) + rows.columns["frame_index"]
    return Videos(feature.name, (height, width), names, file, frame)


def _videos(path: Path, info: Info, key: str, episodes: np.ndarray) -> tuple[list[Path], np.ndarray]:
    """The video of each episode, and the frame of it that the episode begins with (E,)."""
    template = info.content.get("video_path") or VIDEO_PATHS[info.format]
    try:
        if info.format == 2:
            size = int(info.content.get("chunks_size", 1000))
            words = [{"episode_chunk": int(e) // size, "episode_index": int(e)} for e in episodes]
            first = np.zeros(len(episodes), int)
        else:
            columns = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
            wanted = [StoredFeature(name, "", ()) for name in ("episode_index", *columns)]
            tables = [read_file(file, wanted) for file in sorted((path / "meta/episodes").rglob("*.parquet"))]
            read = {feature.name: np.concatenate([table[feature.name] for table in tables]) for feature in wanted}
            place = {int(episode): row for row, episode in enumerate(read["episode_index"])}
            own = [place[int(episode)] for episode in episodes]
            words = [{"chunk_index": int(read[columns[0]][i]), "file_index": int(read[columns[1]][i])} for i in own]
            first = np.rint(read[columns[2]][own] * info.fps).astype(int)
        return [path / template.format(video_key=key, **word) for word in words], first
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: meta/ does not say where the videos of {key} lie ({error!r})") from error
