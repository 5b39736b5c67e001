"""How candidates are timed beside each other, and how the benchmarks say so.

All candidates take turns, so that a machine that slows down slows all; figures are medians over the turns, ratios are
medians of the paired ratios, turn by turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from immiscible_policy.cli import CommandError

Seconds = dict[str, list[float]]
"""Seconds of each candidate, turn by turn."""
Candidates = Mapping[str, Callable[[], float]]
"""What takes turns, by name: each call is one turn and returns its seconds."""


def take_turns(candidates: Candidates, turns: int) -> Seconds:
    """Let candidates take turns; one more before these is not counted."""
    seconds: Seconds = {name: [] for name in candidates}
    for turn in range(1 + turns):
        for name, measure in candidates.items():
            result = measure()
            if turn:
                seconds[name].append(result)
    return seconds


def timed(call: Callable[[], object], calls: int = 1, device: str = "cpu") -> float:
    """Seconds per call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    """Wait until a CUDA device has done its work; the CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def medians(seconds: Seconds) -> dict[str, float]:
    """Medians by name, in milliseconds."""
    return {name: round(1e3 * statistics.median(values), 4) for name, values in seconds.items()}


def ratio(seconds: Seconds, a: str, b: str) -> float:
    """Median of the paired ratios a / b."""
    return round(statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True)), 4)


def require_positive(**ranges: Sequence[int]) -> None:
    """Refuse ranges, by option, that hold a number below 1.

    Raises:
        CommandError: For the first of them.
    """
    for key, numbers in ranges.items():
        if min(numbers) < 1:
            raise CommandError(f"{key}={min(numbers)}: needs 1 or more")


def where(device: str, threads: int) -> str:
    """What is measured on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def short(value: float | None) -> str:
    """A number with three digits, or a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
