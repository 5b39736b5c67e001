"""One row per evaluated episode, and the run directory that keeps them.

A run directory holds

* `config.yaml`: the resolved configuration,
* `seed_N/episodes.csv`: every episode of every evaluated checkpoint of training seed N,
* `seed_N/fresh.csv` (optional): the best checkpoint again, on starts that did not choose it,
* `summary.json` and `summary.md`: what `summary.summarize` derives from the rows.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import yaml

HEADER = "checkpoint,start,seed,success,max_coverage,final_coverage,max_reward,steps"


@dataclass(frozen=True)
class EpisodeRow:
    """One episode: one checkpoint of one training run, rolled out from one start.

    Attributes:
        checkpoint: Training step of the evaluated weights.
        start: Seed that names the start state.
        seed: Training seed of the run.
        success: Whether coverage passed the environment's threshold (0.95).
        max_coverage: Largest covered share of the goal over the episode, in [0, 1].
        final_coverage: Covered share after the last step, in [0, 1].
        max_reward: Largest reward, clip(coverage / 0.95, 0, 1).
        steps: Environment steps taken.
    """

    checkpoint: int
    start: int
    seed: int
    success: bool
    max_coverage: float
    final_coverage: float
    max_reward: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse numbers that would poison every mean.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        for name in ("max_coverage", "final_coverage", "max_reward"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"{name}={getattr(self, name)} at checkpoint {self.checkpoint}, start "
                    f"{self.start}: scores must be finite"
                )


@dataclass(frozen=True)
class Run:
    """What a run directory says.

    Attributes:
        dir: The directory.
        config: The resolved configuration.
        seeds: Rows of each training seed, by seed.
        fresh: Rows of checkpoints evaluated again on other starts, by seed; empty where there are none.
    """

    dir: Path
    config: dict[str, Any]
    seeds: dict[int, list[EpisodeRow]]
    fresh: dict[int, list[EpisodeRow]] = field(default_factory=dict)


def read_rows(path: Path) -> list[EpisodeRow]:
    """Read the episodes of one training seed.

    A last line without its newline was torn by a crash and is dropped. Where a (checkpoint, start) was
    written twice, as after a resume, the later row counts.

    Args:
        path: A file that `append_rows` wrote.

    Returns:
        One row per (checkpoint, start), in the order of first writing.

    Raises:
        ValueError: If the header or a whole line is not what `append_rows` writes.
        OSError: If the file cannot be read.
    """
    header, *lines = Path(path).read_text().split("\n")[:-1] or [HEADER]
    _check_header(header, path)
    rows = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=2)]
    return list({(row.checkpoint, row.start): row for row in rows}.values())


def append_rows(path: Path, rows: Iterable[EpisodeRow]) -> None:
    """Append episodes so that a crash loses at most these rows, never an earlier one.

    All lines go out in one write, flushed to the disk before returning. What a crash left of an earlier
    line is cut off first.

    Args:
        path: The file; created with its header if absent.
        rows: Episodes to add.

    Raises:
        ValueError: If the file is not one of episodes.
        OSError: If it cannot be written.
    """
    with open(path, "a+b") as file:
        file.seek(0)
        whole, newline, _ = file.read().rpartition(b"\n")
        file.truncate(len(whole) + len(newline))
        if newline:
            _check_header(whole.decode().partition("\n")[0], path)
        lines = ([] if newline else [HEADER]) + [_format(row) for row in rows]
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_run(directory: Path) -> Run:
    """Read a run directory: its configuration and the rows of every training seed.

    Seeds that have not been evaluated yet are left out.

    Args:
        directory: A directory with `config.yaml` and `seed_N/episodes.csv`.

    Returns:
        The run.

    Raises:
        ValueError: If it is not a run directory, or no episode has been evaluated in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory; give a run's directory (with config.yaml and seed_N/)")
    if not (directory / "config.yaml").is_file():
        raise ValueError(f"{directory} is no run: it has no config.yaml{_runs_below(directory)}")
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{directory / 'config.yaml'} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{directory / 'config.yaml'} holds no settings; the run is torn, train it again")
    seeds = _rows_by_seed(directory, "episodes.csv")
    if not seeds:
        raise ValueError(f"{directory} has no evaluated episodes (seed_N/episodes.csv); evaluate it first")
    return Run(directory, config, seeds, _rows_by_seed(directory, "fresh.csv"))


Table = dict[int, dict[int, EpisodeRow]]
"""Episodes by checkpoint and start."""


def complete(rows: Mapping[int, Sequence[EpisodeRow]]) -> tuple[list[int], dict[int, Table]]:
    """Which checkpoints were evaluated completely.

    The starts are the set on which most checkpoints were evaluated; a checkpoint that lacks one of them (an
    evaluation cut short) is left out, and so is a seed without a complete checkpoint.

    Args:
        rows: Episodes of each training seed.

    Returns:
        The starts, ascending, and the episodes of each seed by checkpoint, ascending, and start.
    """
    tables: dict[int, Table] = {}
    for seed, of_seed in rows.items():
        table: Table = {}
        for row in of_seed:
            table.setdefault(row.checkpoint, {})[row.start] = row
        tables[seed] = dict(sorted(table.items()))
    counts: Counter[tuple[int, ...]] = Counter(
        tuple(sorted(by_start)) for table in tables.values() for by_start in table.values()
    )
    usual = max(counts, key=lambda starts: (counts[starts], len(starts)), default=())
    whole = {
        seed: {step: by_start for step, by_start in table.items() if by_start.keys() >= set(usual)}
        for seed, table in tables.items()
    }
    return list(usual), {seed: table for seed, table in whole.items() if table}


def _rows_by_seed(directory: Path, name: str) -> dict[int, list[EpisodeRow]]:
    paths = {_seed_number(path.parent): path for path in directory.glob(f"seed_*/{name}")}
    rows = {seed: read_rows(paths[seed]) for seed in sorted(paths)}
    return {seed: of_seed for seed, of_seed in rows.items() if of_seed}


def _seed_number(directory: Path) -> int:
    try:
        return int(directory.name.removeprefix("seed_"))
    except ValueError:
        raise ValueError(f"{directory}: the name must be seed_N with a whole number N") from None


def _runs_below(directory: Path) -> str:
    runs = sorted(path.parent.name for path in directory.glob("*/config.yaml"))
    return f"; it holds the runs {', '.join(runs)}: give one of them" if runs else ""


def _check_header(line: str, path: Path) -> None:
    if line != HEADER:
        raise ValueError(f"{path}: the first line is '{line[:80]}', not '{HEADER}': no file of episodes")


def _format(row: EpisodeRow) -> str:
    kinds = (int, int, int, int, float, float, float, int)
    return ",".join(repr(kind(value)) for kind, value in zip(kinds, astuple(row), strict=True))


def _parse(line: str, where: str) -> EpisodeRow:
    fields = line.split(",")
    try:
        checkpoint, start, seed, success, max_coverage, final_coverage, max_reward, steps = fields
        return EpisodeRow(
            int(checkpoint),
            int(start),
            int(seed),
            bool(int(success)),
            float(max_coverage),
            float(final_coverage),
            float(max_reward),
            int(steps),
        )
    except ValueError as error:
        raise ValueError(f"{where} is damaged ('{line[:80]}': {error}); remove that line") from None
