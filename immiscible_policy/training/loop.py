"""The one training loop, of the robot policy and of its siblings alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from immiscible_policy.training.engine import Objective, make_engine
from immiscible_policy.training.state import TrainState


@dataclass(frozen=True)
class Cadence:
    """Length of a training and how often things happen, in training steps."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens after `step` steps."""
        return step % every == 0 or step == self.steps


class TrainingDiverged(ValueError):
    """The loss is NaN or infinite."""


def train(
    state: TrainState,
    objective: Objective,
    cadence: Cadence,
    *,
    precision: str,
    record: Callable[[dict[str, Any]], None],
    evaluate: Callable[[TrainState], dict[str, Any]],
    save: Callable[[TrainState], None],
    stop: Callable[[], bool] = lambda: False,
    engine: str = "fast",
    evaluated: bool = True,
) -> None:
    """Train from `state.step` to `cadence.steps`, or until `stop` says so, which is asked after every step.

    A checkpoint is saved before the evaluation of the same step: a kill in between loses no training. Resumed, that
    evaluation comes first: `evaluated` says whether the state has had it. A stopped training saves a checkpoint too.

    `record` receives metrics: `step`, `loss` (mean since the last), `lr`, `seconds` since, `rate`, steps/s, and
    `waited`, the share of the time in which training stood still for want of a batch; and what `evaluate` returns.
    `precision` is `fp32`, or `bf16` for a forward pass in bfloat16 over float32 weights.

    Raises:
        TrainingDiverged: At the next record.
    """
    state.model.train()
    if not evaluated:
        record({"step": state.step, **evaluate(state)})
    stopped = False
    total, since = torch.zeros((), device=state.parameters[0].device), state.step
    with closing(make_engine(engine, state, objective, cadence.steps, precision)) as running:
        waited, started = running.waited, time.perf_counter()
        while state.step < cadence.steps and not stopped:
            total += running.step()
            stopped = stop()

            log, check = cadence.due(state.step, cadence.log_every), cadence.due(state.step, cadence.eval_every)
            checkpoint = stopped or cadence.due(state.step, cadence.checkpoint_every)
            if log or check or checkpoint:  # the only moments at which the device is waited for
                mean, seconds = float(total) / (state.step - since), time.perf_counter() - started
                if not math.isfinite(mean):
                    raise TrainingDiverged(f"the loss is {mean} at step {state.step}; lower lr= or check the data")
                record({
                    "step": state.step, "loss": mean, "lr": state.lr, "seconds": seconds,
                    "rate": (state.step - since) / seconds, "waited": (running.waited - waited) / seconds,
                })  # fmt: skip
                if checkpoint:
                    save(state)
                if check:
                    record({"step": state.step, **evaluate(state)})
                total.zero_()
                since, waited, started = state.step, running.waited, time.perf_counter()
