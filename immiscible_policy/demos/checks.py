"""What can be wrong with demonstrations, each finding one line that names the array and the place.

Every check is a generator of lines: reading a store stops at the first, `validate` lists them all.
Legend: T steps in all, E episodes, H and W the image's height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from immiscible_policy.policy.normalizer import FLOAT32_STEPS, SMALLEST_RANGE

KINDS = {"f": "floating point", "i": "signed", "u": "unsigned", "b": "boolean"}
"""Kinds of dtype that an array may have."""
CHANNELS_LAST = "pictures are (T, H, W, 3), channels last"
ABSURD = 1e6
"""Only numbers beyond this are asked whether they lie far out."""


@dataclass(frozen=True)
class Column:
    """What one step of a stored array holds."""

    shape: tuple[int | None, ...] | None = None  # None: any shape, or inside it any length
    kinds: str = "fiub"  # keys of `KINDS`
    required: bool = True  # whether a store must have it
    names: tuple[str, ...] = ()  # names of its numbers, if they have any

    def fits(self, row: tuple[int, ...]) -> bool:
        """Whether a step of this shape may be one; a single number may be (1,) or ()."""
        if self.shape is None or (self.shape, row) == ((1,), ()):
            return True
        return len(row) == len(self.shape) and all(
            want in (None, got) for got, want in zip(row, self.shape, strict=True)
        )

    def __str__(self) -> str:
        sides = iter(("H", "W"))
        shape = [next(sides) if length is None else str(length) for length in self.shape or ("...",)]
        return f"({', '.join(['T', *shape])})"


def is_camera(array: Any) -> bool:
    """Whether an array (a shape is enough) holds pictures (T, H, W, 3)."""
    return len(array.shape) == 4 and array.shape[3] == 3


def channels_first(array: Any) -> bool:
    """Whether an array (shape and dtype are enough) seems to hold pictures (T, 3, H, W), which none is read from."""
    return len(array.shape) == 4 and array.shape[1] == 3 and not is_camera(array) and str(array.dtype) == "uint8"


def place(step: int, episode_ends: np.ndarray) -> str:
    """Say where a step lies: counted over the whole store, and inside its episode."""
    episode = int(np.searchsorted(episode_ends, step, side="right"))
    first = int(episode_ends[episode - 1]) if episode else 0
    return f"step {step} (episode {episode}, its step {step - first})"


def structure_problems(arrays: Mapping[str, Any], columns: Mapping[str, Column]) -> Iterator[str]:
    """Find missing arrays, wrong dtypes, wrong shapes and unequal lengths; nothing is read.

    Arrays that `columns` does not name may have any shape.
    """
    required = [name for name, column in columns.items() if column.required]
    for name in required:
        if name not in arrays:
            own = "recordings of your own train with task=none"
            yield f"data/{name} is missing; a store needs data/{', data/'.join(required)}; {own}"
    if not arrays:
        yield "data/ has no arrays"
    for name, array in arrays.items():
        dtype, shape, column = np.dtype(array.dtype), tuple(array.shape), columns.get(name, Column())
        if dtype.kind not in column.kinds:
            kinds = " or ".join(KINDS[kind] for kind in column.kinds)
            yield f"data/{name} has dtype {dtype}; it should hold {kinds} numbers"
        if not shape or not column.fits(shape[1:]):
            yield f"data/{name} has shape {shape}; it should be {column}"
        elif 0 in shape[1:]:
            yield f"data/{name} has shape {shape}; there is nothing in a step of it"
        elif channels_first(array):
            yield f"data/{name} has shape {shape}; {CHANNELS_LAST}"
    lengths = {name: array.shape[0] for name, array in arrays.items() if array.shape}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"data/{name} {n}" for name, n in lengths.items())
        yield f"the arrays differ in length: {listed}; after an interrupted recording, record on: that drops the rest"


def episode_problems(episode_ends: np.ndarray, n_steps: int) -> Iterator[str]:
    """Find episode ends (E,) that are not whole numbers, do not increase, or do not close at the last step, T."""
    if episode_ends.ndim != 1 or not len(episode_ends) or episode_ends.dtype.kind not in "iu":
        got = f"{episode_ends.dtype}, shape {episode_ends.shape}"
        yield f"meta/episode_ends should be a list of at least one whole number; got {got}"
        return
    starts = np.concatenate([[0], episode_ends[:-1]]).astype(np.int64)
    for episode in np.flatnonzero(episode_ends.astype(np.int64) <= starts):
        bounds = f"it ends at {episode_ends[episode]} and begins at {starts[episode]}"
        yield f"meta/episode_ends does not increase at episode {episode}: {bounds}"
    if episode_ends[-1] != n_steps:
        yield f"meta/episode_ends closes at {episode_ends[-1]}, but the arrays hold {n_steps} steps"


def finite_problems(name: str, values: np.ndarray, episode_ends: np.ndarray) -> Iterator[str]:
    """Find NaN and infinite values in an array (T, ...)."""
    yield from flagged(name, ~np.isfinite(values), values, episode_ends, "")


def outlier_problems(name: str, values: np.ndarray, episode_ends: np.ndarray) -> Iterator[str]:
    """Find numbers (T, ...) beyond `ABSURD` that lie a thousand times further out than half of their dimension.

    One of them, 1e38 say, takes the whole range of normalisation, and all others become the same number.
    """
    if values.dtype.kind != "f" or not (far := np.abs(values) > ABSURD).any():
        return
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    bad = far & (np.abs(values - middle) > 1000 * (high - low))
    usual = f"; half of them lie within {np.min(low):.4g}..{np.max(high):.4g}"
    yield from flagged(name, bad, values, episode_ends, usual)


def resolution_problems(name: str, values: np.ndarray) -> Iterator[str]:
    """Find numbers (T, ...) that vary, but over less than `FLOAT32_STEPS` of their size.

    Everything is trained in float32: of encoder ticks around 1e9, say, hardly any are different numbers there.
    """
    rows = values.reshape(len(values), -1).astype(np.float64)
    low, high = rows.min(axis=0), rows.max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    bad = np.flatnonzero((high - low >= SMALLEST_RANGE) & (high - low < FLOAT32_STEPS * size))
    if len(bad):
        first, more = int(bad[0]), f"; so do {len(bad) - 1} more of its numbers" if len(bad) > 1 else ""
        which, span = f"[{first}]" if rows.shape[1] > 1 else "", f"{low[first]:.10g}..{high[first]:.10g}"
        yield f"data/{name}{which} varies over {span} alone, which float32 hardly resolves; subtract its middle{more}"


def brightness_problem(camera: str, brightest: float) -> str | None:
    """What is wrong with a camera whose largest pixel is this, if anything."""
    if brightest > 1:
        return None
    if brightest == 0:
        return f"{camera} shows nothing but black; leave it out"
    return f"{camera} holds pixels of 0..{brightest:g}; they should be 0..255, multiply by 255"


def flagged(
    name: str, bad: np.ndarray, values: np.ndarray, episode_ends: np.ndarray, expected: str, first: int = 0
) -> Iterator[str]:
    """Turn flagged values into at most one line: the first of them, its place, and how many there are.

    `bad` and `values` are rows (n, ...) of the array from the step `first` on; `expected` follows the place.
    """
    count = int(bad.sum())
    if count:
        index = np.unravel_index(int(np.argmax(bad)), bad.shape)
        component = f"{[int(i) for i in index[1:]]}" if len(index) > 1 else ""
        more = f"; {count} such values in all" if count > 1 else ""
        where = place(first + int(index[0]), episode_ends)
        yield f"data/{name}{component} is {values[index]:.6g} at {where}{expected}{more}"
