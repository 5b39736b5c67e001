"""What one seed of a training does on disk: its lock, its resume, its metrics and its checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from immiscible_policy.capture import ALONE, use_device
from immiscible_policy.cli import Interrupted, one_line
from immiscible_policy.provenance import versions
from immiscible_policy.randomness import derive_seed
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.run import SeedDirectory
from immiscible_policy.training.loggers import Monitor, open_loggers
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.processes import any_of_them, process_group
from immiscible_policy.training.recipe import Listener, Recipe
from immiscible_policy.training.state import TrainState
from immiscible_policy.training.stopping import STOP

ASKED_EVERY = 10
"""Training steps after which several processes ask each other whether to stop."""


def train_seed(recipe: Recipe, seed: SeedDirectory, listen: Listener) -> None:
    """Train one seed from scratch, or from its newest checkpoint, and write everything it yields.

    Of several processes that train it together, the first alone writes and says something.

    Raises:
        ValueError: If another process trains this seed, the run has other settings or data by now, a checkpoint is
            corrupt, or training diverges.
        OSError: If something cannot be written.
        Interrupted: If a signal asked for the end; a checkpoint was left.
    """
    config = recipe.config
    torch.set_num_threads(config.threads)
    use_device(config.device)
    first = process_group().rank == 0
    origin = {"seed": seed.number, "config": config.identity, "data_hash": recipe.data["content_hash"]}
    with seed.lock() if first else nullcontext():
        # Of several processes that train together each has a device of its own.
        seed.run.require_own({f"seed {seed.number}": origin if first else {"data_hash": origin["data_hash"]}})
        work = recipe.build(seed)
        state = initial_state(config, work.model, seed.number)

        def load(checkpoint: Checkpoint) -> None:
            seed.run.require_own({str(checkpoint.path): checkpoint.metadata})
            try:
                state.restore(checkpoint.step, checkpoint.tensors)
            except (RuntimeError, LookupError, AttributeError) as error:
                why = f"{checkpoint.path}: the tensors do not fit this training ({one_line(error)[:80]})"
                raise CheckpointError(why) from None

        newest, errors = seed.restore(load)
        cadence = Cadence(config.steps, config.log_every, config.eval_every, config.checkpoint_every)
        evaluated = newest is None or newest.evaluated
        run = partial(
            train, state, work.objective, cadence, precision=config.precision, engine=config.engine, evaluated=evaluated
        )

        def stop() -> bool:
            """Whether a signal has come, to any of the processes: all end at the same step."""
            due = process_group().size == 1 or state.step % ASKED_EVERY == 0
            return due and any_of_them(STOP.requested)

        if not first:
            try:
                run(record=lambda row: None, evaluate=lambda state: {}, save=lambda state: None, stop=stop)
            except ValueError:  # a first process that ended within an evaluation is gone by now
                STOP.require_none()
                raise
            if state.step < config.steps:
                raise Interrupted(STOP.number or signal.SIGTERM)
            return

        for error in errors:
            listen({"event": "damaged", "seed": seed.number, "why": f"{error}; it was removed"})
        listen({"event": "started", "seed": seed.number, "step": state.step})
        metrics = seed.append_metrics(state.step, evaluated)
        seed.drop_episodes(state.step if evaluated else state.step - 1)
        scored = [name for name in recipe.shown if name != "episodes"]
        monitor = Monitor(open_loggers(config, seed, state.step), work, scored, seed.metrics())

        def record(row: dict[str, Any]) -> None:
            metrics.record(row)
            monitor.record(row, state)
            listen({"event": "metrics" if "loss" in row else "evaluated", "seed": seed.number, **row})
            if "loss" not in row:
                seed.mark_evaluated(state.step)
                seed.tidy(config.keep, work.scores())

        saved = {newest.step} if newest else set()

        def evaluate(state: TrainState) -> dict[str, Any]:
            with STOP.at_once() if state.step in saved else nullcontext():
                return work.evaluate(state)

        def save(state: TrainState) -> None:
            own = {} if cadence.due(state.step, cadence.checkpoint_every) else {"interrupted": True}
            own |= {"evaluated": False} if cadence.due(state.step, cadence.eval_every) else {}
            seed.save(work.metadata | origin | own | {"versions": versions(), "step": state.step}, state.tensors())
            saved.add(state.step)
            seed.tidy(config.keep, work.scores())

        try:
            run(record=record, evaluate=evaluate, save=save, stop=stop)
        finally:
            metrics.close()
            monitor.finish(ended=state.step == config.steps)
        if state.step < config.steps:
            raise Interrupted(STOP.number or signal.SIGTERM)  # where another process was the one to receive it
        listen({"event": "finished", "seed": seed.number, "step": state.step})


@contextmanager
def weights_of(seed: int) -> Iterator[None]:
    """A context in which a model's first weights are a function of the training seed.

    Initialisers draw from torch's global stream, so only one thread at a time may be inside.
    """
    with ALONE:
        torch.manual_seed(derive_seed("weights", seed))
        yield


def initial_state(config: RunConfig, model: torch.nn.Module, seed: int) -> TrainState:
    """The training state of a model at step 0."""
    keys = (
        "optimizer",
        "lr",
        "weight_decay",
        "warmup_steps",
        "steps",
        "ema_power",
        "ema_max",
        "lr_schedule",
        "clip_grad_norm",
    )
    betas = (config.betas[0], config.betas[1])
    settings = {key: getattr(config, key) for key in keys}
    return TrainState(model, seed=seed, betas=betas, teacher=getattr(model, "teacher", None), **settings)
