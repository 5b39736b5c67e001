"""A made-up arm of seven joints, and its demonstrations in every format: zarr, zip, LeRobot 2.1 and 3.0."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from tests.demos.stores import Arrays

FPS = 10
KEYS = {"qpos": "observation.qpos", "ee_pose": "observation.ee_pose", "action": "action"}
"""LeRobot's names of the arrays."""


def arm_arrays(episodes: int = 6, steps: int = 24, side: int = 0, seed: int = 0) -> tuple[Arrays, np.ndarray]:
    """Joints (T, 7), pose (T, 5) and actions (T, 7) of an arm on its way to a pose; with two cameras if side > 0.

    The second joint stands still and the pose is a function of the joints.
    """
    random = np.random.default_rng(seed)
    lengths = steps + np.arange(episodes) % 3
    qpos = []
    for length in lengths:
        first, last = random.uniform(-1, 1, (2, 7))
        way = np.linspace(0, 1, length)[:, None] ** random.choice([1, 2])
        qpos.append(first + way * (last - first))
    joints = np.concatenate(qpos)
    joints[:, 1] = 0.3
    pose = np.stack([np.sin(joints[:, i]) + np.cos(joints[:, i + 2]) for i in range(5)], axis=1)
    action = joints + 0.05 * random.standard_normal(joints.shape)
    arrays = {"qpos": joints, "ee_pose": pose, "action": action}
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    if side:
        for camera, joint in (("front", 0), ("wrist", 2)):
            arrays[camera] = np.zeros((len(joints), side, side, 3), np.uint8)
            for step, place in enumerate(((joints[:, joint] + 1) / 2 * (side - 1)).astype(int)):
                arrays[camera][step, :, place] = 250
    return arrays, np.cumsum(lengths)


def zipped(store: Path, out: Path, below: str = "") -> Path:
    """The files of a store in a zip archive."""
    with zipfile.ZipFile(out, "w") as archive:
        for file in sorted(path for path in store.rglob("*") if path.is_file()):
            archive.write(file, f"{below}{file.relative_to(store)}")
    return out


def write_lerobot(path: Path, arrays: Arrays, ends: np.ndarray, version: str = "v3.0") -> Path:
    """A data set under the names of `KEYS`; cameras become videos without loss, in version 3 two episodes in each."""
    import pyarrow
    from pyarrow import parquet

    three = version.startswith("v3")
    lengths = np.diff(ends, prepend=0)
    episode, frame = np.repeat(np.arange(len(ends)), lengths), np.concatenate([np.arange(n) for n in lengths])
    cameras = {name: values for name, values in arrays.items() if values.ndim == 4}
    columns = {KEYS.get(name, name): values for name, values in arrays.items() if name not in cameras}
    columns |= {"episode_index": episode, "frame_index": frame, "index": np.arange(ends[-1])}
    columns |= {"timestamp": (frame / FPS).astype(np.float32), "task_index": np.zeros(ends[-1], int)}
    for number in range(1 if three else len(ends)):
        rows = slice(None) if three else episode == number
        name = "chunk-000/file-000" if three else f"chunk-000/episode_{number:06d}"
        file = path / f"data/{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table = {key: list(values[rows]) if values.ndim > 1 else values[rows] for key, values in columns.items()}
        parquet.write_table(pyarrow.table(table), file)
    features = {
        key: {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
        for key, values in columns.items()
    }
    per_file = 2 if three else 1
    episodes = {"episode_index": np.arange(len(ends)), "length": lengths}
    for camera, pictures in cameras.items():
        key = f"observation.images.{camera}"
        features[key] = {"dtype": "video", "shape": list(pictures.shape[1:]), "names": ["height", "width", "channels"]}
        for number in range(-(-len(ends) // per_file)):
            name = f"{key}/chunk-000/file-{number:03d}" if three else f"chunk-000/{key}/episode_{number:06d}"
            write_video(path / f"videos/{name}.mp4", pictures[episode // per_file == number])
        starts = np.where(np.arange(len(ends)) % 2 == 0, 0, np.append(0, lengths)[:-1])
        episodes[f"videos/{key}/chunk_index"] = np.zeros(len(ends), int)
        episodes[f"videos/{key}/file_index"] = np.arange(len(ends)) // 2
        episodes[f"videos/{key}/from_timestamp"] = starts / FPS
    (path / "meta").mkdir()
    if three:
        (path / "meta/episodes/chunk-000").mkdir(parents=True)
        parquet.write_table(pyarrow.table(episodes), path / "meta/episodes/chunk-000/file-000.parquet")
    counts = {"total_episodes": len(ends), "total_frames": int(ends[-1]), "chunks_size": 1000}
    info = {"codebase_version": version, "fps": FPS, "features": features} | counts
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def write_video(file: Path, pictures: np.ndarray) -> None:
    """Every picture once, without loss."""
    file.parent.mkdir(parents=True, exist_ok=True)
    words = {"fps": FPS, "codec": "libx264rgb", "pix_fmt_out": "rgb24", "macro_block_size": 1, "quality": None}
    writer = imageio_ffmpeg.write_frames(file, pictures.shape[2:0:-1], output_params=["-crf", "0"], **words)
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
