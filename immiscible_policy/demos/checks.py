"""What can be wrong with demonstrations, each finding one line that names the array and the place.

Every check is a generator of lines: reading a store stops at the first, `validate` lists them all.
Legend: T steps in all, E episodes, H and W the image's height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

REQUIRED = ("state", "action", "keypoint")
"""Arrays that every store of demonstrations holds."""
OPTIONAL = ("n_contacts", "img")
"""Arrays that the published store holds beside them."""
ROW_SHAPES: dict[str, tuple[tuple[int | None, ...], ...]] = {
    "state": ((5,),),
    "action": ((2,),),
    "keypoint": ((9, 2),),
    "n_contacts": ((1,), ()),
    "img": ((None, None, 3),),
}
"""The shapes that one step of an array may have; None stands for any length."""
DTYPE_KINDS = {"state": "f", "action": "f", "keypoint": "f", "n_contacts": "fiu", "img": "fu"}


def place(step: int, episode_ends: np.ndarray) -> str:
    """Say where a step lies: counted over the whole store, and inside its episode."""
    episode = int(np.searchsorted(episode_ends, step, side="right"))
    first = int(episode_ends[episode - 1]) if episode else 0
    return f"step {step} (episode {episode}, its step {step - first})"


def structure_problems(arrays: Mapping[str, Any]) -> Iterator[str]:
    """Find missing arrays, wrong dtypes, wrong shapes and unequal lengths.

    Args:
        arrays: By name, anything with a shape and a dtype; nothing is read.
    """
    for name in REQUIRED:
        if name not in arrays:
            yield f"data/{name} is missing; a store needs data/{', data/'.join(REQUIRED)}"
    for name, array in arrays.items():
        dtype, shape, rows = np.dtype(array.dtype), tuple(array.shape), ROW_SHAPES[name]
        if dtype.kind not in DTYPE_KINDS[name]:
            yield f"data/{name} has dtype {dtype}; it should hold {_kinds(DTYPE_KINDS[name])}"
        if not any(_fits(shape, row) for row in rows):
            yield f"data/{name} has shape {shape}; it should be {_show(rows[0])}"
    lengths = {name: array.shape[0] for name, array in arrays.items() if array.shape}
    if len(set(lengths.values())) > 1:
        yield "the arrays differ in length: " + ", ".join(f"data/{name} {n}" for name, n in lengths.items())


def view_problems(views: Mapping[str, Any], n_steps: int) -> Iterator[str]:
    """Find further cameras whose arrays are no images, or not as many as there are steps."""
    for name, array in views.items():
        if np.dtype(array.dtype).kind not in DTYPE_KINDS["img"] or array.shape[0] != n_steps or array.shape[3] != 3:
            yield f"data/{name} is {array.dtype} {tuple(array.shape)}; a camera's images are ({n_steps}, H, W, 3)"


def episode_problems(episode_ends: np.ndarray, n_steps: int) -> Iterator[str]:
    """Find episode ends that are not whole numbers, do not increase, or do not close at the last step.

    Args:
        episode_ends: (E,), the step after each episode's last.
        n_steps: T, the length of the arrays.
    """
    if episode_ends.ndim != 1 or not len(episode_ends) or episode_ends.dtype.kind not in "iu":
        yield (
            "meta/episode_ends should be a list of at least one whole number; "
            f"got {episode_ends.dtype}, shape {episode_ends.shape}"
        )
        return
    starts = np.concatenate([[0], episode_ends[:-1]]).astype(np.int64)
    for episode in np.flatnonzero(episode_ends.astype(np.int64) <= starts):
        yield (
            f"meta/episode_ends does not increase at episode {episode}: "
            f"it ends at {episode_ends[episode]} and begins at {starts[episode]}"
        )
    if episode_ends[-1] != n_steps:
        yield f"meta/episode_ends closes at {episode_ends[-1]}, but the arrays hold {n_steps} steps"


def finite_problems(name: str, values: np.ndarray, episode_ends: np.ndarray, first: int = 0) -> Iterator[str]:
    """Find NaN and infinite values.

    Args:
        name: The array's name.
        values: (n, ...), rows `first` to `first + n` of the array.
        episode_ends: (E,).
        first: Step of the first row.
    """
    yield from flagged(name, ~np.isfinite(values), values, episode_ends, "", first)


def flagged(
    name: str, bad: np.ndarray, values: np.ndarray, episode_ends: np.ndarray, expected: str, first: int = 0
) -> Iterator[str]:
    """Turn flagged values into at most one line: the first of them, its place, and how many there are."""
    if not bad.any():
        return
    index = np.unravel_index(int(np.argmax(bad)), bad.shape)
    component = f"{[int(i) for i in index[1:]]}" if len(index) > 1 else ""
    count = int(bad.sum())
    more = f"; {count} such values in all" if count > 1 else ""
    yield (
        f"data/{name}{component} is {values[index]:.6g} at {place(first + int(index[0]), episode_ends)}{expected}{more}"
    )


def _fits(shape: tuple[int, ...], row: tuple[int | None, ...]) -> bool:
    same_rank = len(shape) == len(row) + 1
    return same_rank and all(want in (None, got) for got, want in zip(shape[1:], row, strict=True))


def _show(row: tuple[int | None, ...]) -> str:
    names = iter(("H", "W"))
    return "(" + ", ".join(["T", *(next(names) if n is None else str(n) for n in row)]) + ")"


def _kinds(kinds: str) -> str:
    names = {"f": "floating point", "i": "signed", "u": "unsigned"}
    return " or ".join(names[kind] for kind in kinds) + " numbers"
