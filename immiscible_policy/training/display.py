"""What a training run shows on screen: a bar per seed on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0
"""Seconds between two lines about the loss of the same seed where there is no terminal."""

EVALUATED: dict[str, Callable[[Any], str]] = {
    "coverage": "coverage {:.3f}".format,
    "reward": "reward {:.3f}".format,
    "success": "success {:.0%}".format,
    "episodes": "({} starts)".format,
    "fixed_loss": "loss on fixed noise and times {:.4f}".format,
}
"""What is shown of an evaluation, where it was measured."""


class Display:
    """Shows the events of `run.train_seed`; may be called from several threads.

    Args:
        seeds: All seeds of the run.
        steps: Length of each training.
    """

    def __init__(self, seeds: list[int], steps: int) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.steps = steps
        self._lock = Lock()
        self._last_line: dict[int, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bars: dict[int, TaskID] = {
            seed: self._progress.add_task(f"seed {seed}", total=steps, note="", start=False) for seed in seeds
        }

    def __enter__(self) -> Display:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show an event of `train_seed`."""
        with self._lock:
            getattr(self, f"_{event['event']}")(event)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)

    def _started(self, event: dict[str, Any]) -> None:
        seed, step = event["seed"], event["step"]
        self._progress.start_task(self._bars[seed])
        self._progress.update(self._bars[seed], completed=step)
        self.line(f"resume seed {seed} at step {step}" if step else f"start seed {seed}")

    def _fitting(self, event: dict[str, Any]) -> None:
        seed, note = event["seed"], f"fitting potentials, {event['done']} of {event['steps']}"
        self._progress.update(self._bars[seed], note=note)
        if not self.console.is_terminal and (event["done"] % 100 == 0 or event["done"] == event["steps"]):
            self.line(f"seed {seed}  {note}")

    def _metrics(self, event: dict[str, Any]) -> None:
        seed = event["seed"]
        note = f"loss {event['loss']:.4f}  {event['rate']:.1f} steps/s  waited for batches {event['waited']:.1%}"
        self._progress.update(self._bars[seed], completed=event["step"], note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line.get(seed, -LINE_EVERY) >= LINE_EVERY:
            self._last_line[seed] = now
            self.line(f"seed {seed}  step {event['step']:>6} of {self.steps}  {note}")

    def _evaluated(self, event: dict[str, Any]) -> None:
        found = [write(event[key]) for key, write in EVALUATED.items() if key in event]
        self.line("  ".join([f"seed {event['seed']}  step {event['step']:>6}", *found]))

    def _finished(self, event: dict[str, Any]) -> None:
        self._progress.update(self._bars[event["seed"]], completed=event["step"])
        self.line(f"finished seed {event['seed']} at step {event['step']}")
