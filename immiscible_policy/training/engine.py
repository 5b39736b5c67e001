"""How a training step is carried out: `engine=eager` or `engine=fast`. The result is the same.

eager   prepare the batch, then forward, backward, AdamW, EMA: one operation after another, for reading and debugging.
fast    batches are prepared ahead (`ahead.py`). On a GPU forward, backward, AdamW and EMA are moreover compiled and
        captured as one CUDA graph, replayed at every step: the CPU only hands over batches and never waits.
"""

from __future__ import annotations

import shutil
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from immiscible_policy.capture import capture
from immiscible_policy.training.ahead import Ahead
from immiscible_policy.training.batches import Batch, clone, size, tensors
from immiscible_policy.training.processes import average, own_rows, process_group
from immiscible_policy.training.state import TrainState

ENGINES = ("fast", "eager")
GPU_WORKERS = 4
"""Threads that prepare batches for a GPU, whose step takes less time than the CPU needs to pair a batch."""


class Objective(Protocol):
    """What is minimised: a batch for every step, and its loss."""

    def batches(self, step: int) -> Sequence[Batch]:
        """The step's micro-batches, see `training.batches`; a pure function of the step."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over a micro-batch, a scalar; no randomness, no sizes that depend on values."""
        ...


def make_engine(name: str, state: TrainState, objective: Objective, last: int, precision: str) -> Eager:
    """What carries out the steps from `state.step` to `last`, by its name; a ValueError if the name is unknown."""
    if name not in ENGINES:
        raise ValueError(f"engine={name}: choose from {', '.join(ENGINES)}")
    gradients = Gradients(objective, state.parameters, precision)

    def batches(step: int) -> Sequence[Batch]:
        return own_rows(objective.batches(step))

    if name == "eager":
        return Eager(state, lambda: batches(state.step), gradients)
    on_gpu = gradients.device.type == "cuda"
    ahead = Ahead(batches, state.step, last, gradients.device, workers=GPU_WORKERS if on_gpu else 1)
    captured = on_gpu and process_group().size == 1  # an exchange between processes in the middle is not captured
    return (Captured if captured else Eager)(state, ahead.next, gradients, ahead.close)


class Gradients:
    """Forward and backward over the micro-batches of a step, the forward pass in bfloat16 for `precision="bf16"`."""

    def __init__(self, objective: Objective, parameters: Sequence[Tensor], precision: str) -> None:
        self.loss: Callable[[Batch], Tensor] = objective.loss
        self.parameters, self.device, self.enabled = parameters, parameters[0].device, precision == "bf16"

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """Accumulate the gradients of the mean loss over all micro-batches, of all processes, and return it."""
        samples = sum(size(batch) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.enabled):
                loss = self.loss(batch) * (size(batch) / samples)
            loss.backward()
            total += loss.detach()
        return average(total, self.parameters)


@dataclass(eq=False)
class Eager:
    """One operation after another; `waited` counts the seconds in which training stood still for want of a batch.

    `batch` gives the micro-batches of the coming step, and `close` ends whatever prepares them.
    """

    state: TrainState
    batch: Callable[[], Sequence[Batch]]
    gradients: Gradients
    close: Callable[[], None] = lambda: None
    waited: float = 0.0

    def step(self) -> Tensor:
        """One training step; its mean loss."""
        batches = self._next()
        self.state.set_dropout()
        loss = self.gradients(batches)
        self.state.advance()
        return loss

    def _next(self) -> Sequence[Batch]:
        start = time.perf_counter()
        batches = self.batch()
        self.waited += time.perf_counter() - start
        return batches


class Captured(Eager):
    """Forward, backward, AdamW and EMA as one CUDA graph over fixed buffers.

    The first step rehearses (compiling where a compiler is there), undoes what the rehearsal changed, and captures.
    Only the batch, the learning rate and the EMA's share change between replays, all of them in place; every batch has
    the shapes of the first. On the CPU the same work runs uncaptured.
    """

    _replay: Callable[[], None] | None = None

    def step(self) -> Tensor:
        """One training step; its mean loss, in a tensor that the next step overwrites."""
        batches = self._next()
        if self._replay is None:
            self._batches = [clone(batch) for batch in batches]
            self._buffers = tensors(self._batches)
            self._loss = torch.zeros((), device=self.gradients.device)
            self._replay = self._capture()
        for buffer, values in zip(self._buffers, tensors(list(batches)), strict=True):
            buffer.copy_(values)
        self.state.set_dropout()
        self.state.set_rates()
        self._replay()
        self.state.step += 1
        return self._loss

    def _capture(self) -> Callable[[], None]:
        """Rehearse, undo, capture; returns what replays the work."""

        def work() -> None:
            self._loss.copy_(self.gradients(self._batches))
            self.state.update()

        if can_compile(self.gradients.device):
            self.gradients.loss = torch.compile(self.gradients.loss, dynamic=False)
        if self.gradients.device.type == "cuda":
            return capture(work, self.gradients.device, self.state.rehearsal())[0]
        with self.state.rehearsal():
            work()
        return work


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs on a GPU: Triton, and for its launchers a C compiler and headers."""
    if device.type != "cuda":  # on a CPU compiling takes longer than it saves in a training of minutes
        return False
    headers, compilers = Path(sysconfig.get_path("include")) / "Python.h", ("cc", "gcc", "clang")
    return find_spec("triton") is not None and headers.is_file() and any(shutil.which(name) for name in compilers)
