"""Turn a dataset in LeRobot's format into a store.

LeRobot keeps one row per frame in parquet files under `data/` (format 2: a file per episode; format 3: many episodes
in a file). Arrays that `export` wrote as `store.KEY` are taken bit for bit. From the features of any other data set the
task makes the arrays that it needs; images are not converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.store import write_store

OWN = "store."
"""Before the keys of a store's own arrays among the features."""
COUNTERS = ("episode_index", "frame_index")
BOOKKEEPING = (*COUNTERS, "index", "task_index", "timestamp")

Arrays = dict[str, np.ndarray]


def convert(
    path: Path,
    out: Path,
    fps: int,
    columns: Mapping[str, Column],
    from_features: Callable[[Arrays], Arrays],
) -> tuple[Arrays, np.ndarray]:
    """Convert a dataset and return what was written: the arrays by name, and the episode ends (E,).

    It must have `fps` steps per second. `columns` are what the store's arrays should be; `from_features` makes them of
    features (T, width) that are not the store's own.

    Raises:
        CommandError: If `out` exists, or pyarrow is not installed.
        StoreError: If the dataset cannot be read, is incomplete, or does not tell what the store has to hold.
    """
    if out.exists():
        raise CommandError(f"{out}: exists already; choose another path or remove it first")
    info = read_info(path, fps)
    widths = {
        name: math.prod(feature["shape"])
        for name, feature in info["features"].items()
        if name not in BOOKKEEPING and feature.get("dtype", "float32").startswith(("float", "int", "uint", "bool"))
    }
    own = {name.removeprefix(OWN): width for name, width in widths.items() if name.startswith(OWN)}
    read = read_columns(path, {OWN + key: width for key, width in own.items()} or widths)
    ends = episode_ends(path, read, info)
    try:
        arrays = {
            key: read[OWN + key].reshape(-1, *(columns.get(key, Column()).shape or (width,)))
            for key, width in own.items()
        } or from_features(read)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None
    attrs = {"source": f"LeRobot dataset {path.resolve().name}, format {info['codebase_version']}"}
    write_store(out, arrays, ends, attrs, columns)
    return arrays, ends


def read_info(path: Path, fps: int) -> dict[str, Any]:
    """Read a dataset's description and refuse what cannot be converted.

    Raises StoreError if it is missing or broken, of another format or control rate.
    """
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text())
        version, rate = str(info["codebase_version"]), info["fps"]
        for feature in info["features"].values():
            feature["shape"] = list(feature["shape"])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not a LeRobot dataset, meta/info.json is missing") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file}: not a dataset's description ({error})") from error
    if not version.startswith(("v2.", "v3.")):
        raise StoreError(f"{path}: format {version}; formats v2 and v3 can be converted")
    if rate != fps:
        raise StoreError(f"{path}: recorded at {rate} Hz; the task is controlled at {fps} Hz")
    return info


def pyarrow_parquet(command: str) -> Any:
    """The module `pyarrow.parquet`.

    Raises CommandError if pyarrow is not installed, naming the command that needs it.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise CommandError(f"{command} needs pyarrow: pip install 'immiscible-policy[lerobot]'") from error
    return pyarrow.parquet


def read_columns(path: Path, widths: dict[str, int]) -> Arrays:
    """Read columns of known widths, by name (T, width), and the counters (T,), in the order of episodes and frames.

    Raises:
        CommandError: If pyarrow is not installed.
        StoreError: If there is no parquet file, or one cannot be read or lacks a column.
    """
    parquet = pyarrow_parquet("convert")
    import pyarrow

    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise StoreError(f"{path}: no parquet file under data/")
    tables = []
    for file in files:
        try:
            tables.append(_read_file(file, parquet.ParquetFile(file), widths | dict.fromkeys(COUNTERS, 1)))
        except (pyarrow.ArrowException, OSError) as error:
            raise StoreError(f"{file}: cannot be read ({error})") from error
    columns = {name: np.concatenate([table[name] for table in tables]) for name in (*widths, *COUNTERS)}
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    return {name: values[order] for name, values in columns.items()}


def episode_ends(path: Path, columns: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    """Find where episodes end, (E,). Raises StoreError if a frame or an episode is missing."""
    episode, frame = columns["episode_index"], columns["frame_index"]
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    ends = np.append(first[1:], len(episode))
    expected = np.arange(len(episode)) - np.repeat(first, np.diff(ends, prepend=0))
    if (wrong := frame != expected).any():
        step = int(np.argmax(wrong))
        raise StoreError(f"{path}: episode {episode[step]} has no frame {expected[step]}")
    for what, count in (("total_episodes", len(ends)), ("total_frames", len(episode))):
        if info.get(what, count) != count:
            raise StoreError(f"{path}: {what} should be {info[what]}, the parquet files hold {count}")
    return ends


def _read_file(file: Path, parquet: Any, widths: Mapping[str, int]) -> Arrays:
    for name in widths:
        if name not in parquet.schema_arrow.names:
            raise StoreError(f"{file}: has no column {name}")
    table, read = parquet.read(columns=list(widths)), {}
    for name, width in widths.items():
        column = table[name].combine_chunks()
        values = np.asarray(column.flatten() if hasattr(column, "flatten") else column)
        kinds = "iu" if name in COUNTERS else "fiub"
        if values.dtype.kind not in kinds or values.size != len(column) * width:
            raise StoreError(f"{file}: column {name} does not hold {width} numbers per frame")
        read[name] = values if name in COUNTERS else values.reshape(len(column), width)
    return read
