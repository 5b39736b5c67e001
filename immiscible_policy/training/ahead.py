"""Batches prepared ahead, in worker threads, while the device is busy with the step before.

A batch is a pure function of (seed, step), so the threads' timing changes nothing. What pays is above all the linear
assignment, which the CPU solves and which depends on data and noise alone, never on the parameters::

    workers    batch 7  |  batch 8  |  batch 9  | ...
    training            |  step 7   |  step 8   |  step 9  ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from immiscible_policy.training.batches import Batch, tensors


class Ahead:
    """Hands out the batches of steps `first`, `first + 1`, ..., `last - 1`.

    `batches` is called from several threads; twice as many batches as workers are begun before they are asked for. On a
    GPU they are prepared in a stream of their own.
    """

    def __init__(
        self, batches: Callable[[int], Sequence[Batch]], first: int, last: int, device: torch.device, workers: int = 1
    ) -> None:
        self._batches, self._device = batches, device
        self._coming = iter(range(first, last))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the data may still be on its way
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._begun: deque[Future[tuple[Sequence[Batch], Any]]] = deque()
        for _ in range(2 * workers):
            self._begin()

    def next(self) -> Sequence[Batch]:
        """The micro-batches of the next step; waits for them if need be, and raises what preparing them raised."""
        prepared = self._begun.popleft()
        self._begin()
        batches, ready = prepared.result()
        if ready is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(ready)
            for tensor in tensors(list(batches)):
                tensor.record_stream(stream)
        return batches

    def close(self) -> None:
        """Drop what was begun and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        step = next(self._coming, None)
        if step is not None:
            self._begun.append(self._pool.submit(self._prepare, step))

    def _prepare(self, step: int) -> tuple[Sequence[Batch], Any]:
        """A step's micro-batches and, on a GPU, the event after which they may be read."""
        if self._stream is None:
            return self._batches(step), None
        with torch.cuda.stream(self._stream):
            return self._batches(step), self._stream.record_event()
