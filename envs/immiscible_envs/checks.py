"""Checks of what callers hand in; every mistake is one line that names the value."""

from __future__ import annotations

from typing import Any

import numpy as np

from immiscible_envs.geometry import Array


def finite(values: Any, shape: tuple[int | None, ...], name: str) -> Array:
    """Read finite float64 numbers of a shape (None: any length but 0) as a new array, or raise a ValueError."""
    wanted = str(shape).replace("None", "any")
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers of shape {wanted}, got {_short(values)}") from None
    fits = [size == count or (count is None and size > 0) for size, count in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {_short(array.tolist())}")
    return array


def inside(array: Array, low: Any, high: Any, name: str) -> Array:
    """Return the array (..., D) if it lies within the bounds, ends included; else a ValueError names the first (D,)."""
    outside = ((array < low) | (array > high)).any(axis=-1)
    if outside.any():
        first = array[outside][0] if array.ndim > 1 else array
        raise ValueError(f"{name} {_short(first.tolist())} is outside {_short(low)} to {_short(high)}")
    return array


def one_of(name: str, known: tuple[str, ...], what: str) -> str:
    """Return the name if it is known; else raise a ValueError that lists the known ones."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


def _short(values: Any) -> str:
    text = " ".join(str(values).split())
    return text if len(text) <= 120 else text[:117] + "..."
