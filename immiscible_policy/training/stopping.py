"""SIGINT, SIGTERM and SIGHUP end a training in order: every seed leaves a checkpoint, and its workers end too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import FrameType

from immiscible_policy.cli import Interrupted
from immiscible_policy.training.options import CLUSTERS, RunConfig
from immiscible_policy.training.processes import process_group

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTE = b"\nstopping: every seed leaves a checkpoint first; once more ends at once\n"


class Stop:
    """What this process knows of a signal to end.

    Attributes:
        number: The signal, or None before it comes.
        workers: Processes that train seeds for this one; the signal is passed on to them.
        immediate: Whether a signal ends this process at once: what it does is done again when the training is resumed.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.workers: set[BaseProcess] = set()
        self.immediate = False

    @property
    def requested(self) -> bool:
        """Whether trainings are to end at their next step."""
        return self.number is not None

    def require_none(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context that a signal ends by Interrupted, in the main thread, which alone receives signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.require_none()
        self.immediate = True
        try:
            yield
        finally:
            self.immediate = False

    def kill(self) -> None:
        """End the workers at once."""
        for worker in list(self.workers):
            worker.kill()

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: the first asks for the end, the second kills the workers and ends at once."""
        if self.requested:
            self.kill()
            raise Interrupted(number)
        self.number = number
        with suppress(OSError):  # a terminal that hangs up is gone
            os.write(2, NOTE)
        for worker in list(self.workers):
            worker.terminate()
        if self.immediate:
            raise Interrupted(number)

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal in a worker: its parent, which may send another, decides what to kill."""
        self.number = self.number or number
        if self.immediate:
            raise Interrupted(number)


STOP = Stop()
"""That of this process."""


@contextmanager
def stoppable(config: RunConfig, go_on: str | None = None) -> Iterator[None]:
    """A context in which trainings end in order at a signal; `go_on` is the command that continues them, to be shown.

    A hangup of the terminal is ignored where it was ignored before, as under `nohup`. Of several processes that train
    one seed, whoever started them decides what to kill. The context changes nothing where jobs run elsewhere, and
    outside the main thread, which alone may handle signals.

    Raises:
        Interrupted: At the end, if a signal came.
    """
    if config.launcher in CLUSTERS or threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    receive = STOP.receive if process_group().size == 1 else STOP.note
    earlier = {number: signal.signal(number, receive) for number in (*SIGNALS, *hangup)}
    number = None
    try:
        yield
    except Interrupted as interrupted:  # of several processes another one may have received the signal
        number = interrupted.number
    finally:
        number = number or STOP.number
        for known, handler in earlier.items():
            signal.signal(known, handler)
        if receive not in earlier.values():
            STOP.number = None
    if number is not None:
        kept = "interrupted; every seed that had begun keeps a checkpoint, continue with"
        raise Interrupted(number, f"{kept}: {go_on}") if go_on else Interrupted(number)
