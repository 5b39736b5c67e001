"""What a training run shows on screen: a bar per seed on a terminal, plain lines elsewhere; of many seeds their sum."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0
"""Seconds between two lines about the loss of the same seed where there is no terminal."""
FEW = 8
"""Up to so many seeds each have a bar all the time; of more, each while it trains, below one of all."""


class Display:
    """Shows the events of `train_seed`; may be called from several threads.

    `steps` are those of each seed, by what events have as `seed`: a number, or `run/seed`. `metrics` are shown of an
    evaluation, by format.
    """

    def __init__(self, steps: Mapping[int | str, int], metrics: Mapping[str, str]) -> None:
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self.steps, self.metrics = steps, metrics
        self._lock = Lock()
        self._reached: dict[int | str, int] = dict.fromkeys(steps, 0)
        self._finished_seeds: set[int | str] = set()
        self._many = len(steps) > FEW
        self._last_line: dict[int | str, float] = {}
        self._progress = Progress(
            *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("{task.fields[note]}"), TimeRemainingColumn()),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._all = self._progress.add_task("all", total=sum(steps.values()), note="", visible=self._many)
        self._bars: dict[int | str, TaskID] = {
            seed: self._progress.add_task(f"seed {seed}", total=own, note="", start=False, visible=not self._many)
            for seed, own in steps.items()
        }

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show an event of `train_seed`; a terminal that has hung up stops no training."""
        with self._lock, suppress(OSError):
            getattr(self, f"_{event['event']}")(event)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)

    def _started(self, event: dict[str, Any]) -> None:
        seed, step = event["seed"], event["step"]
        self._progress.start_task(self._bars[seed])
        self._reach(seed, step, visible=True)
        self.line(f"resume seed {seed} at step {step}" if step else f"start seed {seed}")

    def _damaged(self, event: dict[str, Any]) -> None:
        self.line(f"seed {event['seed']}: {event['why']}; training continues from the previous checkpoint")

    def _metrics(self, event: dict[str, Any]) -> None:
        seed = event["seed"]
        note = f"loss {event['loss']:.4f}  {event['rate']:.1f} steps/s  waited for batches {event['waited']:.1%}"
        self._reach(seed, event["step"], note=note)
        subject, now = "all" if self._many else seed, time.monotonic()
        if not self.console.is_terminal and now - self._last_line.get(subject, -LINE_EVERY) >= LINE_EVERY:
            self._last_line[subject] = now
            own = f"seed {seed}  step {event['step']:>6} of {self.steps[seed]}  {note}"
            self.line(f"all  {self._summary()}" if self._many else own)

    def _evaluated(self, event: dict[str, Any]) -> None:
        values = [text.format(event[metric]) for metric, text in self.metrics.items() if metric in event]
        self.line("  ".join([f"seed {event['seed']}  step {event['step']:>6}", *values]))

    def _finished(self, event: dict[str, Any]) -> None:
        self._finished_seeds.add(event["seed"])
        self._reach(event["seed"], event["step"], visible=not self._many)
        self.line(f"finished seed {event['seed']} at step {event['step']}")

    def _reach(self, seed: int | str, step: int, **shown: Any) -> None:
        """Move a seed's bar, and that of all."""
        self._reached[seed] = step
        self._progress.update(self._bars[seed], completed=step, **shown)
        self._progress.update(self._all, completed=sum(self._reached.values()), note=self._summary())

    def _summary(self) -> str:
        trained = sum(step / self.steps[seed] for seed, step in self._reached.items())
        return f"{trained:.1f} of {len(self._reached)} seeds trained, {len(self._finished_seeds)} finished"
