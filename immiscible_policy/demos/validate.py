"""Everything that is wrong with a store of demonstrations, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from immiscible_policy.demos import checks, lerobot
from immiscible_policy.demos.checks import Column, is_camera
from immiscible_policy.demos.chunks import StoreError, missing_chunks, read_rows, undecodable_chunks
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.frames import Frames
from immiscible_policy.demos.store import chosen
from immiscible_policy.demos.zarr_store import Replay, open_replay, read_replay


def problems(
    path: Path,
    columns: Mapping[str, Column] | None = None,
    meaning: Callable[[Demonstrations], Iterator[str]] = lambda demos: iter(()),
) -> Iterator[str]:
    """Find everything that is wrong with a store, one line each; images are read, a chunk at a time.

    Values are looked at once structure, chunk files and episodes are in order; before that they mean nothing.
    Then `meaning` finds values, all finite, that the task cannot have given.
    """
    columns = columns or {}
    try:
        if not lerobot.is_dataset(path):
            replay = chosen(open_replay(path), columns, cameras=None)
            yield from (wrong := list(replay_problems(replay, columns)))
            if wrong:
                return
            demos = read_replay(path, replay, read_rows(replay.ends))
        else:
            demos = lerobot.open_dataset(path, columns)
    except StoreError as error:
        yield str(error).removeprefix(f"{path}: ")
        return
    ends = demos.episode_ends
    wrong = [line for name, values in demos.arrays.items() for line in checks.finite_problems(name, values, ends)]
    wrong += [line for name, values in demos.arrays.items() for line in checks.outlier_problems(name, values, ends)]
    wrong += [line for name, values in demos.arrays.items() for line in checks.resolution_problems(name, values)]
    yield from wrong or meaning(demos)
    for camera, frames in demos.frames.items():
        for problem in image_problems(camera, frames, ends):
            yield problem.removeprefix(f"{path}: ")


def replay_problems(replay: Replay, columns: Mapping[str, Column]) -> Iterator[str]:
    """Find wrong shapes and lengths, missing chunk files, and those that cannot be decoded."""
    yield from checks.structure_problems(replay.arrays, columns)
    for array in (replay.ends, *replay.arrays.values()):
        yield from (missing := list(missing_chunks(replay.has, array)))
        if not missing and not is_camera(array):
            yield from undecodable_chunks(array)


def image_problems(camera: str, frames: Frames, ends: np.ndarray) -> Iterator[str]:
    """Find images that cannot be decoded or whose pixels leave 0..255, a block at a time."""
    brightest, undecodable = 0.0, set[str]()
    for start in range(0, len(frames), frames.pictures.block):
        try:
            images = frames[start : start + frames.pictures.block]
        except StoreError as error:
            if str(error) not in undecodable:
                yield str(error)
            undecodable.add(str(error))
            continue
        bad = ~((images >= 0) & (images <= 255))  # NaN fails both
        yield from checks.flagged(camera, bad, images, ends, "; pixels should be 0..255", first=start)
        brightest = max(brightest, float(images.max()))
    if not undecodable and (problem := checks.brightness_problem(f"data/{camera}", brightest)):
        yield problem
