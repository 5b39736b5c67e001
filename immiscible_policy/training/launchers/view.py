"""One view of all jobs, wherever they run: what they append to their events is shown here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from immiscible_policy.training.display import Display
from immiscible_policy.training.workers import Job

LOOK_EVERY = 1.0
"""Seconds between two looks at the jobs' events."""


@contextmanager
def shown(jobs: Sequence[Job], display: Display) -> Iterator[None]:
    """A context in which a thread shows the events that jobs add, from now on to the last."""
    seen = {job: _size(job) for job in jobs}
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
    """Show what has been added since the last look, up to the last line break."""
    for job, begin in seen.items():
        if _size(job) <= begin:
            continue
        with open(job.directory.events, "rb") as file:
            file.seek(begin)
            whole, newline, _ = file.read().rpartition(b"\n")
        seen[job] = begin + len(whole) + len(newline)
        for line in whole.splitlines():
            with suppress(ValueError):  # empty, or torn by the death of the machine that wrote it
                display.show(json.loads(line) | {"seed": job.name})


def _size(job: Job) -> int:
    events = job.directory.events
    return events.stat().st_size if events.exists() else 0
