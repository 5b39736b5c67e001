"""Small demonstrations for the tests: a block that drifts and turns, an agent that wanders."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from immiscible_envs.geometry import keypoints
from immiscible_policy.demos import Demonstrations, open_store
from immiscible_policy.tasks import find_task

LENGTHS = (12, 30, 9)
PUSHT = find_task("pusht")

Arrays = dict[str, npt.NDArray]


def opened(path: Path) -> Demonstrations:
    """A PushT store, checked as the task asks for it."""
    return open_store(path, PUSHT.columns)


def changed(demos: Demonstrations, **arrays: npt.NDArray | None) -> Demonstrations:
    """Demonstrations with some arrays instead of theirs, without those that are None."""
    kept = {key: values for key, values in (dict(demos.arrays) | arrays).items() if values is not None}
    return dataclasses.replace(demos, arrays=kept)


def small_arrays(lengths=LENGTHS, image: int = 0, seed: int = 0) -> tuple[Arrays, npt.NDArray]:
    """Arrays by stored name, with images of side `image` unless 0, and the episode ends."""
    random = np.random.default_rng(seed)
    n_steps = sum(lengths)
    pose = np.cumsum(random.normal(0, 0.3, (n_steps, 3)), axis=0) * (1, 1, 0.05) + (250, 260, 3)
    agent = np.clip(np.cumsum(random.normal(0, 3, (n_steps, 2)), axis=0) + 200, 0, 512)
    arrays = {
        "state": np.concatenate([agent, pose], axis=1).astype(np.float32),
        "action": np.clip(agent + random.normal(0, 3, agent.shape), 0, 512).astype(np.float32),
        "keypoint": keypoints(pose).astype(np.float32),
        "n_contacts": random.integers(0, 3, (n_steps, 1)).astype(np.float32),
    }
    if image:
        arrays["img"] = random.integers(0, 256, (n_steps, image, image, 3)).astype(np.float32)
    return arrays, np.cumsum(lengths)


def write_plain(path: Path, arrays: Arrays, ends, zarr_format: int = 2, rows: int = 7) -> Path:
    """Write a store through zarr alone, unchecked, in chunks of a few rows."""
    root = zarr.create_group(path, zarr_format=zarr_format)
    stored = {f"data/{name}": values for name, values in arrays.items()}
    stored["meta/episode_ends"] = np.asarray(ends)
    for name, values in stored.items():
        group = root.require_group(name.split("/")[0])
        chunks = (rows if name.startswith("data") else len(values), *values.shape[1:])
        array = group.create_array(
            name.split("/")[1],
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            config={"write_empty_chunks": True},
        )
        array[:] = values
    return path
