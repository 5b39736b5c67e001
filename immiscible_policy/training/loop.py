"""The one training loop, of the robot policy and of its siblings alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from immiscible_policy.training.state import TrainState


class Objective(Protocol):
    """What is minimised: a batch for every step, and its loss."""

    def batches(self, step: int) -> Sequence[Any]:
        """The step's micro-batches (sized: `len(part[0])` samples), a pure function of the step."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Mean loss over a micro-batch, a scalar."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When things happen, in training steps.

    Attributes:
        steps: Length of the training.
        log_every: Steps between metrics.
        eval_every: Steps between evaluations.
        checkpoint_every: Steps between checkpoints.
    """

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens after `step` steps."""
        return step % every == 0 or step == self.steps


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


def train(
    state: TrainState,
    objective: Objective,
    schedule: Schedule,
    *,
    precision: str,
    record: Callable[[dict[str, Any]], None],
    evaluate: Callable[[TrainState], dict[str, Any]],
    save: Callable[[TrainState], None],
) -> None:
    """Train from `state.step` to `schedule.steps`.

    Evaluation comes before the checkpoint of the same step: a run killed in between evaluates again when resumed.

    Args:
        state: Model, optimizer, schedule, EMA and step; changed in place.
        objective: Batches and loss.
        schedule: When to log, evaluate and save.
        precision: `fp32`, or `bf16` for a forward pass in bfloat16 over float32 weights.
        record: Receives metrics: `step`, `loss` (mean since the last), `lr`, `seconds` since and `rate`, steps/s.
        evaluate: Scores the state; its result is recorded.
        save: Writes a checkpoint.

    Raises:
        TrainingDiverged: If the loss is NaN or infinite.
    """
    device = state.parameters[0].device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    state.model.train()
    total, since, started = torch.zeros((), device=device), state.step, time.perf_counter()

    while state.step < schedule.steps:
        parts = objective.batches(state.step)
        size = sum(len(part[0]) for part in parts)
        for part in parts:
            with autocast:
                loss = objective.loss(part) * (len(part[0]) / size)
            loss.backward()
            total += loss.detach()
        state.advance()

        log, check = (
            schedule.due(state.step, schedule.log_every),
            schedule.due(state.step, schedule.eval_every),
        )
        checkpoint = schedule.due(state.step, schedule.checkpoint_every)
        if log or check or checkpoint:  # the only moments at which the device is waited for
            mean, seconds = float(total) / (state.step - since), time.perf_counter() - started
            if not math.isfinite(mean):
                raise TrainingDiverged(f"the loss is {mean} at step {state.step}; lower lr= or check the data")
            rate = (state.step - since) / seconds
            record({"step": state.step, "loss": mean, "lr": state.lr, "seconds": seconds, "rate": rate})
            if check:
                record({"step": state.step, **evaluate(state)})
            if checkpoint:
                save(state)
            total.zero_()
            since, started = state.step, time.perf_counter()
