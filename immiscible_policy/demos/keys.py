"""Arrays of a store by the names that `obs=` and `action=` give: which there are, and whether they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.checks import CHANNELS_LAST, channels_first, is_camera
from immiscible_policy.demos.store import Stored, contents

MOST_NUMBERS = 1024
"""An array with more numbers per step is a picture of another kind, such as a depth map, which no policy here sees."""


def require_keys(path: str | Path, obs: str | None, action: str) -> None:
    """Refuse names of arrays that a store does not have, or that do not fit; nothing but metadata is read.

    `obs` joins names by commas: arrays of numbers (T, ...), and cameras (T, H, W, 3). The action is (T, A).

    Raises:
        StoreError: If the store cannot be opened.
        CommandError: Naming the key, what it is, and which keys would fit.
    """
    stored = contents(path)
    if not obs:
        raise CommandError(f"obs= is missing: name what the policy sees, one or several of {_listed(stored, _is_seen)}")
    keys = obs.split(",")
    for key in keys:
        _require("obs", key, stored, _is_seen)
        if keys.count(key) > 1:
            raise CommandError(f"obs={obs}: names {key} more than once")
    _require("action", action, stored, _is_action)


def all_numbers(path: str | Path, action: str) -> list[str]:
    """The arrays of numbers of a store that a policy could see, without the actions."""
    stored = contents(path).items()
    return [key for key, array in stored if key != action and _is_seen(array) and not is_camera(array)]


def shape_text(stored: Stored) -> str:
    """A shape as messages write it: `(T, 7)`."""
    return f"({', '.join(['T', *map(str, stored.shape[1:])])})"


def _require(option: str, key: str, stored: Mapping[str, Stored], fits: Callable[[Stored], bool]) -> None:
    if key not in stored:
        raise CommandError(f"{option}={key}: there is no {key}; what fits: {_listed(stored, fits)}")
    if not fits(stored[key]):
        what = f"{key} has shape {shape_text(stored[key])} and dtype {stored[key].dtype}"
        what += f" ({CHANNELS_LAST})" if channels_first(stored[key]) else ""
        raise CommandError(f"{option}={key}: {what}; what fits: {_listed(stored, fits)}")


def _listed(stored: Mapping[str, Stored], fits: Callable[[Stored], bool]) -> str:
    return ", ".join(f"{key} {shape_text(array)}" for key, array in stored.items() if fits(array)) or "nothing here"


def _is_seen(array: Stored) -> bool:
    numbers = _is_number(array) and not channels_first(array)
    return is_camera(array) or (numbers and 1 <= math.prod(array.shape[1:]) <= MOST_NUMBERS)


def _is_action(array: Stored) -> bool:
    return _is_number(array) and len(array.shape) in (1, 2) and 1 <= math.prod(array.shape[1:]) <= MOST_NUMBERS


def _is_number(array: Stored) -> bool:
    try:
        return np.dtype(array.dtype).kind in "fiub" and len(array.shape) > 0
    except TypeError:  # a type of LeRobot's own, such as `video`
        return False
