"""Checks of what callers hand in; every mistake is one line that names the value."""

from __future__ import annotations

from typing import Any

import numpy as np

from immiscible_envs.geometry import Array


def finite(values: Any, shape: tuple[int | None, ...], name: str) -> Array:
    """Read finite float64 numbers of a shape.

    Args:
        values: Anything NumPy reads as an array of numbers.
        shape: The shape that it must have; None where any length but 0 will do.
        name: What the caller calls it, for the message.

    Returns:
        A new float64 array of that shape.

    Raises:
        ValueError: If the shape differs or a number is not finite.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers of shape {_written(shape)}, got {_short(values)}") from None
    if len(array.shape) != len(shape) or any(
        got != wanted if wanted is not None else got == 0 for got, wanted in zip(array.shape, shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape {_written(shape)}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {_short(array.tolist())}")
    return array


def inside(array: Array, low: Any, high: Any, name: str) -> Array:
    """Return the array (..., D) if every number lies between the bounds, ends included.

    Raises:
        ValueError: If one does not; the message names the first (D,) with such a number.
    """
    outside = ((array < low) | (array > high)).any(axis=-1)
    if outside.any():
        first = array[outside][0] if array.ndim > 1 else array
        raise ValueError(f"{name} {_short(first.tolist())} is outside {_short(low)} to {_short(high)}")
    return array


def one_of(name: str, known: tuple[str, ...], what: str) -> str:
    """Return the name if it is known.

    Raises:
        ValueError: If it is not; the message lists the known ones.
    """
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


def _written(shape: tuple[int | None, ...]) -> str:
    return str(shape).replace("None", "any")


def _short(values: Any) -> str:
    text = " ".join(str(values).split())
    return text if len(text) <= 120 else text[:117] + "..."
