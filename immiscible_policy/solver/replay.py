"""Replaying a solution that was recorded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.capture import capture

Function = Callable[..., Tensor]
Record = Callable[[Function, list[Tensor]], tuple[Callable[[], None], Tensor]]
"""Prepares a function on tensors that stay where they are: returns what runs it again, and where its result lies."""


def record_cuda_graph(function: Function, inputs: list[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a function as a CUDA graph."""
    return capture(lambda: function(*inputs), inputs[0].device)


KEPT = 4
"""Recordings that are kept: rollouts, held-out episodes and videos alternate between batches of several sizes."""


class Replay:
    """Records a function once and replays it on new inputs: a whole denoising then costs one launch.

    A recording sees weights that are changed in place. Every `key`, and every shape, type and device of the inputs, has
    its own; the four used last are kept. Threads take turns. A copy of the object starts without recordings.

    Args:
        record: Records; by default as a CUDA graph.
    """

    def __init__(self, record: Record = record_cuda_graph) -> None:
        self.record = record
        self._recordings: dict[Hashable, tuple[list[Tensor], Callable[[], None], Tensor]] = {}  # used last is last
        self._turn = Lock()
        self._done: torch.cuda.Event | None = None  # the last replay, which threads' streams wait for

    def __call__(self, key: Hashable, function: Function, *inputs: Tensor) -> Tensor:
        """function(*inputs), by replaying it: a function of tensors on one device that neither draws nor waits for it.

        Keys are equal for functions that do the same to tensors.
        """
        key = (key, *((x.shape, x.dtype, x.device) for x in inputs))
        stream = torch.cuda.current_stream(inputs[0].device) if inputs[0].is_cuda else None
        with self._turn:
            if stream and self._done:
                stream.wait_event(self._done)
            recording = self._recordings.pop(key, None)
            if recording is None:
                if len(self._recordings) == KEPT:
                    del self._recordings[next(iter(self._recordings))]
                static = [x.clone() for x in inputs]
                recording = static, *self.record(function, static)
            self._recordings[key] = recording
            recorded, run, result = recording
            for own, x in zip(recorded, inputs, strict=True):
                own.copy_(x)
            run()
            output = result.clone()
            self._done = stream.record_event() if stream else None
            return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Replay:
        return Replay(self.record)
