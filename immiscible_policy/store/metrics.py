"""The metrics of one training seed: a JSON object per line, in the order of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from immiscible_policy.store.atomic import write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read whole lines; a last line without its newline was torn by a crash and is dropped.

    Returns:
        The rows, each with its `step`; none if there is no such file.

    Raises:
        ValueError: If a whole line is no JSON object with a step.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number} is damaged ('{line[:80]}'); remove that line") from None
    return rows


class MetricsFile:
    """Appends rows, one line each.

    Args:
        path: The file.
        resume_step: Training is at this step: rows of later steps, and a torn line, are dropped first.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_atomically(path, "".join(_line(row) for row in kept).encode())
        self._file = open(path, "a", buffering=1)

    def record(self, row: dict[str, Any]) -> None:
        """Add a line."""
        self._file.write(_line(row))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
