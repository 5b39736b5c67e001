"""What one seed of a training does on disk: its lock, its resume, its metrics and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from immiscible_policy.capture import ALONE, use_device
from immiscible_policy.provenance import versions
from immiscible_policy.randomness import derive_seed
from immiscible_policy.store.checkpoint import alone, newest_checkpoint, save_checkpoint, tidy
from immiscible_policy.store.metrics import MetricsFile
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.processes import process_group
from immiscible_policy.training.recipe import Listener, Recipe, Work
from immiscible_policy.training.state import TrainState
from immiscible_policy.training.wandb_run import WandbRun


def seed_directory(run: Path, seed: int) -> Path:
    """Where a training seed keeps its results."""
    return run / f"seed_{seed}"


def is_finished(config: RunConfig, run: Path, seed: int) -> bool:
    """Whether a seed has its last checkpoint."""
    newest = newest_checkpoint(seed_directory(run, seed) / "checkpoints")
    return newest is not None and newest.step >= config.steps


def train_seed(recipe: Recipe, run: Path, seed: int, listen: Listener) -> TrainState:
    """Train one seed from scratch, or from its newest checkpoint, and write everything it yields.

    Of several processes that train it together, the first alone writes and says something.

    Args:
        recipe: What is trained.
        run: The run directory.
        seed: Training seed.
        listen: Receives what happens.

    Returns:
        The state after the last step.

    Raises:
        ValueError: If another process trains this seed, a checkpoint is corrupt, or training diverges.
        OSError: If something cannot be written.
    """
    config: RunConfig = recipe.config
    torch.set_num_threads(config.threads or 1)
    use_device(config.device)
    directory = seed_directory(run, seed)
    checkpoints = directory / "checkpoints"
    if process_group().rank > 0:
        work, state = _build(recipe, directory, seed)
        _train(config, work, state, lambda row: None, lambda state: {}, lambda state: None)
        return state
    with alone(directory):
        work, state = _build(recipe, directory, seed)
        listen({"event": "started", "seed": seed, "step": state.step})
        metrics = MetricsFile(directory / "metrics.jsonl", state.step)
        name, run_id = f"{run.name}-seed{seed}", f"{derive_seed(str(run.resolve()), seed):016x}"
        wandb = WandbRun(config.wandb, directory, run_id, name, config.identity | {"train_seed": seed})
        data_hash = recipe.data["content_hash"]
        origin = {"seed": seed, "config": config.identity, "data_hash": data_hash, "versions": versions()}

        def record(row: dict[str, Any]) -> None:
            metrics.record(row)
            wandb.record(row)
            listen({"event": "metrics" if "loss" in row else "evaluated", "seed": seed, **row})

        def save(state: TrainState) -> None:
            metadata = work.metadata | origin | {"step": state.step}
            save_checkpoint(checkpoints / f"step_{state.step:06d}", metadata, state.tensors())
            tidy(checkpoints, config.keep, work.scores())

        _train(config, work, state, record, work.evaluate, save)
        metrics.close()
        wandb.close()
        listen({"event": "finished", "seed": seed, "step": state.step})
        return state


def _build(recipe: Recipe, directory: Path, seed: int) -> tuple[Work, TrainState]:
    """A seed's work, and its state as the newest checkpoint has it."""
    work = recipe.build(seed, directory)
    state = initial_state(recipe.config, work.model, seed)
    newest = newest_checkpoint(directory / "checkpoints")
    if newest is not None:
        state.restore(newest.step, newest.tensors)
    return work, state


def _train(
    config: RunConfig,
    work: Work,
    state: TrainState,
    record: Callable[[dict[str, Any]], None],
    evaluate: Callable[[TrainState], dict[str, Any]],
    save: Callable[[TrainState], None],
) -> None:
    """Hand the work to the loop, as the options say."""
    eval_every = config.eval_every or config.checkpoint_every
    train(
        state,
        work.objective,
        Cadence(config.steps, config.log_every, eval_every, config.checkpoint_every),
        precision=config.precision,
        record=record,
        evaluate=evaluate,
        save=save,
        engine=config.engine,
    )


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
    return TrainState(
        model,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
        ema_power=config.ema_power,
        ema_max=config.ema_max,
        lr_schedule=config.lr_schedule,
        clip=config.clip,
        seed=seed,
    )
