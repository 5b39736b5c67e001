"""The one way an interval is written: as text, and as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from immiscible_policy.evaluation.statistics import Interval

Bounds = tuple[float, float]
"""Smallest and largest possible value."""


def text(interval: Interval | Mapping[str, Any] | None, form: str = ".3f", cut: Bounds | None = None) -> str:
    """An estimate with its interval, or what `figures` made of one, such as `0.812 [0.790, 0.834]`.

    No text for None; an estimate without an interval stands alone. The brackets are cut to the range `cut`.
    """
    if interval is None:
        return ""
    estimate = interval.estimate if isinstance(interval, Interval) else interval["mean"]
    return f"{estimate:{form}} {brackets(interval, form, cut)}".rstrip()


def brackets(interval: Interval | Mapping[str, Any] | None, form: str = ".3f", cut: Bounds | None = None) -> str:
    """The interval alone, such as `[0.790, 0.834]`; nothing where there is none."""
    ends = None if interval is None else _ends(interval, cut)
    return "" if ends is None else f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def figures(interval: Interval | None, cut: Bounds | None = None) -> dict[str, Any]:
    """An interval as JSON values {mean, low, high, over}; None for what is unknown, for ends that are missing too."""
    if interval is None:
        return dict.fromkeys(("mean", "low", "high", "over"))
    low, high = _ends(interval, cut) or (None, None)
    return {"mean": interval.estimate, "low": low, "high": high, "over": interval.over}


def _ends(interval: Interval | Mapping[str, Any], cut: Bounds | None) -> Bounds | None:
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else (interval["low"], interval["high"])
    if low is None or math.isnan(low):
        return None
    return (low, high) if cut is None else (max(cut[0], low), min(cut[1], high))
