"""What one seed of a training does on disk: its lock, its resume, its metrics and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from immiscible_policy.capture import use_device
from immiscible_policy.provenance import versions
from immiscible_policy.randomness import derive_seed
from immiscible_policy.store.checkpoint import alone, newest_checkpoint, save_checkpoint, tidy
from immiscible_policy.store.metrics import MetricsFile
from immiscible_policy.training.engine import Objective
from immiscible_policy.training.loop import Schedule, train
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.processes import world
from immiscible_policy.training.state import TrainState
from immiscible_policy.training.training import Report
from immiscible_policy.training.wandb_run import WandbRun


class Work(NamedTuple):
    """What is trained in a seed, and how it is told apart and judged.

    Attributes:
        state: The training state at step 0.
        objective: What is minimised; it may have taken long to prepare.
        metadata: What a checkpoint says about the model.
        evaluate: Scores a state; its result is recorded.
        scores: Score of each evaluated step, for `keep=last+best`.
    """

    state: TrainState
    objective: Objective
    metadata: dict[str, Any]
    evaluate: Callable[[TrainState], dict[str, Any]]
    scores: Callable[[], Mapping[int, float]]


def seed_directory(run: Path, seed: int) -> Path:
    """Where a training seed keeps its results."""
    return run / f"seed_{seed}"


def is_finished(config: RunConfig, run: Path, seed: int) -> bool:
    """Whether a seed has its last checkpoint."""
    newest = newest_checkpoint(seed_directory(run, seed) / "checkpoints")
    return newest is not None and newest.step >= config.steps


def run_seed(
    config: RunConfig, data_hash: str, run: Path, seed: int, report: Report, prepare: Callable[[], Work]
) -> TrainState:
    """Train one seed from scratch, or from its newest checkpoint, and write everything it yields.

    Args:
        config: The resolved options.
        data_hash: Content hash of the data.
        run: The run directory.
        seed: Training seed.
        report: Receives what happens.
        prepare: Builds the work, on the seed's own threads and device.

    Returns:
        The state after the last step.

    Raises:
        ValueError: If another process trains this seed, a checkpoint is corrupt, or training diverges.
        OSError: If something cannot be written.
    """
    torch.set_num_threads(config.threads or 1)
    use_device(config.device)
    directory = seed_directory(run, seed)
    checkpoints = directory / "checkpoints"
    if world().rank > 0:
        return _follow(config, checkpoints, prepare())
    with alone(directory):
        work = prepare()
        state = work.state
        _restore(state, checkpoints)
        report({"event": "started", "seed": seed, "step": state.step})
        metrics = MetricsFile(directory / "metrics.jsonl", state.step)
        name, run_id = f"{run.name}-seed{seed}", f"{derive_seed(str(run.resolve()), seed):016x}"
        wandb = WandbRun(config.wandb, directory, run_id, name, config.identity | {"train_seed": seed})
        origin = {"seed": seed, "config": config.identity, "data_hash": data_hash, "versions": versions()}

        def record(row: dict[str, Any]) -> None:
            metrics.record(row)
            wandb.record(row)
            report({"event": "metrics" if "loss" in row else "evaluated", "seed": seed, **row})

        def save(state: TrainState) -> None:
            metadata = work.metadata | origin | {"step": state.step}
            save_checkpoint(checkpoints / f"step_{state.step:06d}", metadata, state.tensors())
            tidy(checkpoints, config.keep, work.scores())

        _train(config, work, record, work.evaluate, save)
        metrics.close()
        wandb.close()
        report({"event": "finished", "seed": seed, "step": state.step})
        return state


def _follow(config: RunConfig, checkpoints: Path, work: Work) -> TrainState:
    """Train beside the first process, which does all that is seen of the training."""
    _restore(work.state, checkpoints)
    _train(config, work, lambda row: None, lambda state: {}, lambda state: None)
    return work.state


def _restore(state: TrainState, checkpoints: Path) -> None:
    newest = newest_checkpoint(checkpoints)
    if newest is not None:
        state.restore(newest.step, newest.tensors)


def _train(
    config: RunConfig,
    work: Work,
    record: Callable[[dict[str, Any]], None],
    evaluate: Callable[[TrainState], dict[str, Any]],
    save: Callable[[TrainState], None],
) -> None:
    """Hand the work to the loop, as the options say."""
    eval_every = config.eval_every or config.checkpoint_every
    train(
        work.state,
        work.objective,
        Schedule(config.steps, config.log_every, eval_every, config.checkpoint_every),
        precision=config.precision,
        record=record,
        evaluate=evaluate,
        save=save,
        engine=config.engine,
    )


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
