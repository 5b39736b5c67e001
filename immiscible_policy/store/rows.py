"""One row per evaluated episode.

A file of episodes has the columns `checkpoint,start,seed`, those of the task's metrics (yes-or-no metrics first), and
`steps`. It is only ever appended to.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from immiscible_policy.tasks.task import Metric

TOLERANCE = 1e-6
"""So far may rounding carry a metric out of its range."""


@dataclass(frozen=True)
class EpisodeRow:
    """One episode: one checkpoint (its training step) of one training seed, rolled out from one start.

    Raises ValueError if a value is NaN or infinite, which would poison every mean.
    """

    checkpoint: int
    start: int
    seed: int
    metrics: dict[str, float]  # of the task, by name; a yes-or-no metric is 1 or 0
    steps: int  # environment steps taken

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                place = f"checkpoint {self.checkpoint}, start {self.start}"
                raise ValueError(f"{name}={value} at {place}: metrics must be finite")


def read_rows(path: Path, metrics: Sequence[Metric]) -> list[EpisodeRow]:
    """Read the episodes of one training seed: a row per (checkpoint, start); none if there is no such file.

    A last line without its newline was torn by a crash and is dropped. Where a (checkpoint, start) was
    written twice, as after a resume, the later row counts.

    Raises:
        ValueError: If the header or a whole line is not what `append_rows` writes for these metrics.
    """
    if not path.exists():
        return []
    header, *lines = path.read_text().split("\n")[:-1] or [_header(metrics)]
    _check_header(header, path, metrics)
    rows = [_parse(line, metrics, f"{path}, line {number}") for number, line in enumerate(lines, start=2)]
    return list({(row.checkpoint, row.start): row for row in rows}.values())


def append_rows(path: Path, rows: Iterable[EpisodeRow], metrics: Sequence[Metric]) -> None:
    """Append episodes so that a crash loses at most these rows, never an earlier one; the file is created if absent.

    All lines go out in one write, flushed to the disk before returning. What a crash left of an earlier
    line is cut off first.

    Raises:
        ValueError: If the file is not one of episodes of this task, or a value lies outside its metric's range.
        OSError: If it cannot be written.
    """
    lines = []
    for row in rows:
        values = [(metric.reduce, _checked(row.metrics[metric.name], metric)) for metric in _columns(metrics)]
        numbers = [int(value) if reduce == "any" else value for reduce, value in values]
        cells = [int(row.checkpoint), int(row.start), int(row.seed), *numbers, int(row.steps)]
        lines.append(",".join(map(repr, cells)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        whole, newline, _ = file.read().rpartition(b"\n")
        file.truncate(len(whole) + len(newline))
        if newline:
            _check_header(whole.decode().partition("\n")[0], path, metrics)
        else:
            lines.insert(0, _header(metrics))
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


Table = dict[int, dict[int, EpisodeRow]]
"""Episodes by checkpoint and start."""


def complete(rows: Mapping[int, Sequence[EpisodeRow]]) -> tuple[list[int], dict[int, Table]]:
    """The starts, and the episodes of each seed by checkpoint (both ascending) and start, of complete evaluations.

    The starts are the set on which most checkpoints were evaluated; a checkpoint that lacks one of them (an
    evaluation cut short) is left out, and so is a seed without a complete checkpoint.
    """
    tables: dict[int, Table] = {}
    for seed, of_seed in rows.items():
        table: Table = {}
        for row in of_seed:
            table.setdefault(row.checkpoint, {})[row.start] = row
        tables[seed] = dict(sorted(table.items()))
    counts = Counter(tuple(sorted(by_start)) for table in tables.values() for by_start in table.values())
    usual = max(counts, key=lambda starts: (counts[starts], len(starts)), default=())
    whole = {}
    for seed, table in tables.items():
        if kept := {step: by_start for step, by_start in table.items() if by_start.keys() >= set(usual)}:
            whole[seed] = kept
    return list(usual), whole


def _columns(metrics: Sequence[Metric]) -> list[Metric]:
    return sorted(metrics, key=lambda metric: metric.reduce != "any")


def _header(metrics: Sequence[Metric]) -> str:
    return ",".join(["checkpoint", "start", "seed", *(metric.column for metric in _columns(metrics)), "steps"])


def _check_header(line: str, path: Path, metrics: Sequence[Metric]) -> None:
    if line != _header(metrics):
        raise ValueError(f"{path}: the first line is '{line[:80]}', not '{_header(metrics)}': no file of episodes")


def _parse(line: str, metrics: Sequence[Metric], where: str) -> EpisodeRow:
    try:
        checkpoint, start, seed, *texts, steps = line.split(",")
        pairs = zip(_columns(metrics), texts, strict=True)
        values = {metric.name: _checked(float(text), metric) for metric, text in pairs}
        return EpisodeRow(int(checkpoint), int(start), int(seed), values, int(steps))
    except ValueError as error:
        raise ValueError(f"{where} is damaged ('{line[:80]}': {error}); remove that line") from None


def _checked(value: float, metric: Metric) -> float:
    if not metric.low - TOLERANCE <= value <= metric.high + TOLERANCE:
        raise ValueError(f"{metric.column}={value} is outside [{metric.low}, {metric.high}]")
    return float(value)
