"""Say everything that is wrong with a store of demonstrations, and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

from immiscible_envs.geometry import keypoints
from immiscible_envs.simulation import WORKSPACE
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse
from immiscible_policy.demos import checks
from immiscible_policy.demos.store import (
    Chunk,
    StoreError,
    chunks_of,
    missing_chunks,
    open_arrays,
    open_store,
    undecodable_chunks,
)

KEYPOINT_TOLERANCE = 3.0
"""Largest distance [px] of stored keypoints from those of the stored pose; the human store reaches 2.2."""

USAGE = """usage: python -m immiscible_policy.demos validate path=STORE

Reads a whole store, images included, prints each thing that is wrong with it and where (array, episode, step,
chunk file), and exits with code 2 if there is any.

example:
  python -m immiscible_policy.demos validate path=data/pusht_expert.zarr"""
OPTIONS = {"path": Option(Path, REQUIRED, "store of demonstrations (a .zarr directory)")}


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        CommandError: If anything is wrong with the store, after each thing was printed.
    """
    path = parse(argv, OPTIONS, USAGE)["path"]
    found = 0
    for problem in problems(path):
        print(problem, flush=True)
        found += 1
    if found:
        raise CommandError(f"{path}: {found} {'problem' if found == 1 else 'problems'} found")
    demos = open_store(path)
    print(f"{path}: {demos.n_episodes} episodes, {len(demos):,} steps, nothing wrong")


def problems(path: Path) -> Iterator[str]:
    """Find everything that is wrong with a store, one line each.

    Values are looked at once structure, chunk files and episodes are in order; before that they mean nothing.
    """
    try:
        stored = open_arrays(path)
    except StoreError as error:
        yield str(error)
        return
    ends_array = stored.pop("episode_ends")
    wrong = list(checks.structure_problems(stored))
    for array in (ends_array, *stored.values()):
        missing = list(missing_chunks(path, array))
        wrong += missing
        if not missing and array is not stored.get("img"):
            wrong += undecodable_chunks(array)
    yield from wrong
    if wrong:
        return
    ends = np.asarray(ends_array[:])
    wrong = list(checks.episode_problems(ends, stored["state"].shape[0]))
    yield from wrong
    if not wrong:
        read = {name: np.asarray(array[:]) for name, array in stored.items() if name != "img"}
        yield from value_problems(read, ends)
        if "img" in stored:
            yield from image_problems(stored["img"], ends)


def value_problems(arrays: dict[str, np.ndarray], ends: np.ndarray) -> Iterator[str]:
    """Find numbers that PushT cannot have given.

    Args:
        arrays: `state` (T, 5), `action` (T, 2), `keypoint` (T, 9, 2) and perhaps `n_contacts`.
        ends: (E,) episode ends.
    """
    wrong = [line for name, a in arrays.items() for line in checks.finite_problems(name, a, ends)]
    yield from wrong
    if wrong:
        return
    for name, what in (("action", "an action"), ("state", "agent and block")):
        values = arrays[name][:, :4]
        outside = (values < 0) | (values > WORKSPACE)
        yield from checks.flagged(name, outside, values, ends, f"; {what} should lie in 0..{WORKSPACE:.0f}")
    if "n_contacts" in arrays:
        negative = arrays["n_contacts"] < 0
        yield from checks.flagged("n_contacts", negative, arrays["n_contacts"], ends, "; it counts contacts")
    yield from keypoint_problems(arrays["state"], arrays["keypoint"], ends)


def keypoint_problems(state: np.ndarray, keypoint: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """Find stored keypoints (T, 9, 2) that are not where the stored pose puts them."""
    distance = np.linalg.norm(keypoint - keypoints(state[:, 2:5]), axis=-1)  # (T, 9)
    if (distance > KEYPOINT_TOLERANCE).any():
        steps = np.flatnonzero((distance > KEYPOINT_TOLERANCE).any(axis=1))
        point = int(distance[steps[0]].argmax())
        yield (
            f"data/keypoint[{point}] lies {distance[steps[0], point]:.1f} px from where data/state puts it "
            f"(up to {KEYPOINT_TOLERANCE:.0f} px are usual) at {checks.place(int(steps[0]), ends)}; "
            f"{len(steps)} such steps in all"
        )


def image_problems(array: zarr.Array, ends: np.ndarray) -> Iterator[str]:
    """Find images that cannot be decoded or whose pixels leave 0..255, a chunk at a time."""
    brightest = 0.0
    for chunk in chunks_of(array):
        try:
            images = np.asarray(array[chunk.region])
        except Exception as error:  # every codec has its own exception
            yield f"{chunk} cannot be decoded ({error})"
            continue
        yield from pixel_problems(chunk, images, ends)
        brightest = max(brightest, float(images.max()))
    if 0 < brightest <= 1:
        yield "data/img holds pixels of 0..1; they should be 0..255"


def pixel_problems(chunk: Chunk, images: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """Find pixels of one chunk that are no number of 0..255."""
    if images.dtype == np.uint8 or (images.min() >= 0 and images.max() <= 255):  # NaN fails both
        return
    bad = ~((images >= 0) & (images <= 255))
    first = chunk.region[0].start
    yield from checks.flagged("img", bad, images, ends, f"; pixels should be 0..255 ({chunk})", first)
