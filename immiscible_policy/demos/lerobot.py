"""Turn a PushT dataset in LeRobot's format into a store.

LeRobot keeps one row per frame in parquet files under `data/` (format 2: a file per episode; format 3:
many episodes in a file). Of its columns, `observation.state` is the agent's x, y, and
`observation.environment_state` of `pusht_keypoints` holds the T's eight corners in the world frame, from
which the block's pose follows by a rigid fit (Kabsch, 1976); `immiscible_envs.lerobot` shows their order.

The store's keypoints are those of that pose. Contacts are not recorded there; images are not converted. A
dataset that `export` wrote holds the store's own arrays too, as `store.NAME`: then these are taken, bit for bit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_envs.geometry import keypoints, place
from immiscible_envs.lerobot import CORNERS
from immiscible_envs.simulation import CONTROL_HZ
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse
from immiscible_policy.demos.store import StoreError, write_store

FIT_TOLERANCE = 0.1
"""Largest distance [px] of a corner from the fitted T; float32 rounding stays below 0.001."""
WIDTHS = {"observation.state": 2, "observation.environment_state": 16, "action": 2}
"""Numbers per frame in each column that is converted."""
STORED: dict[str, tuple[int, ...]] = {
    "store.state": (5,),
    "store.action": (2,),
    "store.keypoint": (18,),
    "store.n_contacts": (),
}
"""Shape of a frame in the columns that `export` adds; contacts only where the store counts them."""
COUNTERS = ("episode_index", "frame_index")

USAGE = """usage: python -m immiscible_policy.demos convert path=DIR out=STORE

Converts a PushT dataset of LeRobot's format 2 or 3 that holds the T's corners, as lerobot/pusht_keypoints
does, to a store with state, action and keypoints. Needs pyarrow: pip install 'immiscible-policy[lerobot]'

example:
  python -m immiscible_policy.demos convert path=pusht_keypoints out=data/pusht_lerobot.zarr"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "directory of the dataset, with meta/info.json and data/"),
    "out": Option(Path, REQUIRED, "store to create (a .zarr directory)"),
}


def main(argv: list[str]) -> None:
    """Run the command."""
    words = parse(argv, OPTIONS, USAGE)
    arrays, ends = convert(words["path"], words["out"])
    print(f"{words['out']}: {len(ends)} episodes, {len(arrays['state']):,} steps")


def convert(path: Path, out: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Convert a dataset.

    Args:
        path: The dataset's directory.
        out: Store to create.

    Returns:
        What was written: the arrays by name, and the episode ends (E,).

    Raises:
        CommandError: If `out` exists, or pyarrow is not installed.
        StoreError: If the dataset cannot be read, is incomplete, or does not tell where the block is.
    """
    if out.exists():
        raise CommandError(f"{out}: exists already; choose another path or remove it first")
    info = read_info(path)
    stored = [name for name in STORED if name in info["features"]]
    columns = read_columns(path, [*(stored or WIDTHS), *COUNTERS])
    ends = episode_ends(path, columns, info)
    arrays = stored_arrays(columns) if stored else fitted_arrays(path, columns)
    attrs = {"source": f"LeRobot dataset {path.resolve().name}, format {info['codebase_version']}"}
    write_store(out, arrays, ends, attrs)
    return arrays, ends


def stored_arrays(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the store that a dataset was exported from."""
    arrays = {name.removeprefix("store."): values for name, values in columns.items() if name in STORED}
    return {name: values.reshape(-1, 9, 2) if name == "keypoint" else values for name, values in arrays.items()}


def fitted_arrays(path: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a store, the block's pose by a fit to the T's corners.

    Raises:
        StoreError: If the corners of a frame are not those of the T.
    """
    corners = columns["observation.environment_state"].astype(np.float64).reshape(-1, 8, 2)
    pose, error = fit_pose(corners)
    if not (error <= FIT_TOLERANCE).all():
        step = int(np.argmax(~(error <= FIT_TOLERANCE)))
        raise StoreError(
            f"{path}: observation.environment_state of episode {columns['episode_index'][step]}, frame "
            f"{columns['frame_index'][step]} is not the T's eight corners (off by {error[step]:.3g} px)"
        )
    return {
        "state": np.concatenate([columns["observation.state"], pose], axis=1).astype(np.float32),
        "action": columns["action"].astype(np.float32),
        "keypoint": keypoints(pose).astype(np.float32),
    }


def read_info(path: Path) -> dict[str, Any]:
    """Read a dataset's description and refuse what cannot be converted.

    Raises:
        StoreError: If it is missing or broken, of another format or control rate, or lacks the T's corners.
    """
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text())
        version, features, rate = str(info["codebase_version"]), dict(info["features"]), info["fps"]
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not a LeRobot dataset, meta/info.json is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file}: not a dataset's description ({error})") from error
    if not version.startswith(("v2.", "v3.")):
        raise StoreError(f"{path}: format {version}; formats v2 and v3 can be converted")
    if rate != CONTROL_HZ:
        raise StoreError(f"{path}: recorded at {rate} Hz; PushT is controlled at {CONTROL_HZ} Hz")
    for name, width in WIDTHS.items():
        shape = features.get(name, {}).get("shape")
        if shape is None and name == "observation.environment_state":
            raise StoreError(
                f"{path}: no {name}, so nothing tells where the block is (images are not read); "
                "lerobot/pusht_keypoints holds it"
            )
        if shape is None or list(shape) != [width]:
            raise StoreError(f"{path}: {name} has shape {shape}; [{width}] can be converted")
    return info


def pyarrow_parquet(command: str) -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        CommandError: If pyarrow is not installed, naming the command that needs it.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise CommandError(f"{command} needs pyarrow: pip install 'immiscible-policy[lerobot]'") from error
    return pyarrow.parquet


def read_columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read all frames, in the order of episodes and frames.

    Args:
        path: The dataset's directory.
        names: Columns to read.

    Returns:
        By column name: (T, width) floats, and (T,) counters.

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
            tables.append(_read_file(file, parquet.ParquetFile(file), names))
        except (pyarrow.ArrowException, OSError) as error:
            raise StoreError(f"{file}: cannot be read ({error})") from error
    columns = {name: np.concatenate([table[name] for table in tables]) for name in names}
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    return {name: values[order] for name, values in columns.items()}


def episode_ends(path: Path, columns: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    """Find where episodes end, (E,).

    Raises:
        StoreError: If a frame or an episode is missing.
    """
    episode, frame = columns["episode_index"], columns["frame_index"]
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    ends = np.append(first[1:], len(episode))
    lengths = np.diff(ends, prepend=0)
    expected = np.arange(len(episode)) - np.repeat(first, lengths)
    if (frame != expected).any():
        step = int(np.argmax(frame != expected))
        raise StoreError(f"{path}: episode {episode[step]} has no frame {expected[step]}")
    for what, count in (("total_episodes", len(ends)), ("total_frames", len(episode))):
        if info.get(what, count) != count:
            raise StoreError(f"{path}: {what} should be {info[what]}, the parquet files hold {count}")
    return ends


def fit_pose(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the T to its corners in the least-squares sense.

    Args:
        corners: (T, 8, 2) in the world frame [px], in the order of `CORNERS`.

    Returns:
        Poses (T, 3), x, y [px] and angle [rad] in 0..2 pi, and the largest distance (T,) of a corner from
        where the pose puts it [px].
    """
    local = CORNERS - CORNERS.mean(axis=0)
    world = corners - corners.mean(axis=1, keepdims=True)
    cosine = np.einsum("pi,tpi->t", local, world)
    sine = np.einsum("p,tp->t", local[:, 0], world[..., 1]) - np.einsum("p,tp->t", local[:, 1], world[..., 0])
    angle = np.arctan2(sine, cosine) % (2 * np.pi)
    turned = np.stack([np.zeros_like(angle), np.zeros_like(angle), angle], axis=1)
    position = (corners - place(CORNERS, turned)).mean(axis=1)
    pose = np.concatenate([position, angle[:, None]], axis=1)
    return pose, np.linalg.norm(corners - place(CORNERS, pose), axis=-1).max(axis=1)


def _read_file(file: Path, parquet: Any, names: list[str]) -> dict[str, np.ndarray]:
    lacking = [name for name in names if name not in parquet.schema_arrow.names]
    if lacking:
        raise StoreError(f"{file}: has no column {lacking[0]}")
    table = parquet.read(columns=names)
    return {name: _numbers(file, name, table[name].combine_chunks()) for name in names}


def _numbers(file: Path, name: str, column: Any) -> np.ndarray:
    """A column as (n,) counters or (n, width) floats; contacts are (n,) numbers of any kind."""
    shape = STORED.get(name, (WIDTHS[name],) if name in WIDTHS else ())
    kinds = "iu" if name in COUNTERS else "f" if shape else "fiu"
    values = np.asarray(column.flatten() if shape else column)
    if values.dtype.kind not in kinds or values.size != len(column) * math.prod(shape):
        raise StoreError(f"{file}: column {name} does not hold {math.prod(shape)} numbers per frame")
    return values.reshape(len(column), *shape)
