"""One view of all jobs, wherever they run: what they append to their events is shown here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from immiscible_policy.training.display import Display
from immiscible_policy.training.workers import Job

LOOK_EVERY = 1.0
"""Seconds between two looks at the jobs' events."""


@contextmanager
def shown(jobs: Sequence[Job], display: Display) -> Iterator[None]:
    """A context in which a thread shows the events that jobs add, from now on to the last."""
    seen = {job: _size(job.events) for job in jobs}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            _look(seen, display)
        _look(seen, display)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _look(seen: dict[Job, int], display: Display) -> None:
    """Show what has been added since the last look."""
    for job, begin in seen.items():
        if _size(job.events) > begin:
            new = _whole_lines(job.events, begin)
            seen[job] = begin + len(new)
            for line in new.splitlines():
                _show(job, line, display)


def _show(job: Job, line: bytes, display: Display) -> None:
    try:
        event = json.loads(line)
    except ValueError:  # empty, or torn by the death of the machine that wrote it
        return
    display.show(event | {"seed": job.name})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _whole_lines(path: Path, begin: int) -> bytes:
    """What a file holds from a position on, up to its last line break."""
    with open(path, "rb") as file:
        file.seek(begin)
        new = file.read()
    return new[: new.rfind(b"\n") + 1]
