"""One row per evaluated episode.

A file of episodes has the columns `checkpoint,start,seed`, those of the task's metrics (yes-or-no metrics first), and
`steps`, and one row per evaluated episode.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.reading import read_text
from immiscible_policy.tasks.task import Metric

WHOLE = re.compile(r"\d{1,18}", re.ASCII)
NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?(e[+-]?\d{1,3})?", re.ASCII)
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


def read_rows(
    path: Path, metrics: Sequence[Metric], seed: int | None = None, last: int | None = None
) -> list[EpisodeRow]:
    """Read episodes, of one training seed and up to its last step where these are given; none if there is no file.

    A last line without its newline was torn by a crash and is dropped.

    Raises:
        ValueError: If the header or a whole line is not what `append_rows` writes for these metrics, is of another
            seed or a later step, or repeats an episode.
    """
    if not path.exists():
        return []
    header, *lines = read_text(path).split("\n")[:-1] or [_header(metrics)]
    _check_header(header, path, metrics)
    rows: dict[tuple[int, int, int], EpisodeRow] = {}
    for number, line in enumerate(lines, start=2):
        row = _parse(line, metrics, f"{path}, line {number}")
        if seed not in (None, row.seed):
            raise ValueError(f"{path}, line {number} is of seed {row.seed}, the file of seed {seed}; remove that line")
        if last is not None and row.checkpoint > last:
            beyond = f"is of step {row.checkpoint}, the training has {last}"
            raise ValueError(f"{path}, line {number} {beyond}; remove that line")
        if (key := (row.seed, row.checkpoint, row.start)) in rows:
            raise ValueError(f"{path}, line {number} repeats an episode ('{line[:80]}'); remove that line")
        rows[key] = row
    return list(rows.values())


def append_rows(path: Path, rows: Iterable[EpisodeRow], metrics: Sequence[Metric]) -> None:
    """Append episodes so that a crash loses at most these rows, never an earlier one; the file is created if absent.

    All lines go out in one write, flushed to the disk before returning. What a crash left of an earlier line is cut
    off first. Rows of episodes that are evaluated once more replace the earlier ones.

    Raises:
        ValueError: If the file is not one of episodes of this task, or a value lies outside its metric's range.
        OSError: If it cannot be written.
    """
    lines = {}
    for row in rows:
        values = [(metric.reduce, _checked(row.metrics[metric.name], metric)) for metric in _columns(metrics)]
        numbers = [int(value) if reduce == "any" else value for reduce, value in values]
        cells = [int(row.checkpoint), int(row.start), int(row.seed), *numbers, int(row.steps)]
        line = ",".join(map(repr, cells))
        lines[_episode(line)] = line
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    header, *earlier = whole.decode(errors="replace").split("\n")[:-1] or [_header(metrics)]
    _check_header(header, path, metrics)
    kept = [line for line in earlier if _episode(line) not in lines]
    if not whole or len(kept) < len(earlier):
        _write(path, [header, *kept, *lines.values()])
        return
    with open(path, "r+b") as file:
        file.truncate(len(whole))
        file.seek(len(whole))
        file.write("".join(line + "\n" for line in lines.values()).encode())
        file.flush()
        os.fsync(file.fileno())


def drop_rows(path: Path, after: int, metrics: Sequence[Metric]) -> None:
    """Drop the episodes of checkpoints after a training step; a ValueError as `read_rows`."""
    if any(row.checkpoint > after for row in read_rows(path, metrics)):
        header, *lines = path.read_text().split("\n")[:-1]
        _write(path, [header, *(line for line in lines if int(_episode(line)[0]) <= after)])


EpisodeTable = dict[int, dict[int, EpisodeRow]]
"""Episodes by checkpoint and start."""


def complete(rows: Mapping[int, Sequence[EpisodeRow]]) -> tuple[list[int], dict[int, EpisodeTable]]:
    """The starts, and the episodes of each seed by checkpoint (both ascending) and start, of complete evaluations.

    The starts are the set on which most checkpoints were evaluated; a checkpoint that lacks one of them (an
    evaluation cut short) is left out, and so is a seed without a complete checkpoint.
    """
    tables: dict[int, EpisodeTable] = {}
    for seed, of_seed in rows.items():
        table: EpisodeTable = {}
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


def _write(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


def _episode(line: str) -> tuple[str, ...]:
    """Checkpoint, start and seed of a line."""
    return tuple(line.split(",")[:3])


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
        if not all(WHOLE.fullmatch(cell) for cell in (checkpoint, start, seed, steps)):
            raise ValueError("checkpoint, start, seed and steps are whole numbers")
        if not all(NUMBER.fullmatch(cell) for cell in texts):
            raise ValueError("metrics are numbers")
        pairs = zip(_columns(metrics), texts, strict=True)
        values = {metric.name: _checked(float(text), metric) for metric, text in pairs}
        return EpisodeRow(int(checkpoint), int(start), int(seed), values, int(steps))
    except ValueError as error:
        raise ValueError(f"{where} is damaged ('{line[:80]}': {error}); remove that line") from None


def _checked(value: float, metric: Metric) -> float:
    if metric.reduce == "any" and value not in (0, 1):
        raise ValueError(f"{metric.column}={value} is neither 0 nor 1")
    if not metric.low - TOLERANCE <= value <= metric.high + TOLERANCE:
        raise ValueError(f"{metric.column}={value} is outside [{metric.low}, {metric.high}]")
    return float(value)
