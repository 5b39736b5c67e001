"""Training one seed: the parts are built here, handed to the loop, and its results put on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.capture import ALONE
from immiscible_policy.demos.split import split_episodes
from immiscible_policy.demos.store import Demonstrations, content_hash
from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.evaluation.agent import Agent, spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.chunk import ChunkPolicy
from immiscible_policy.policy.diffusion import DiffusionPolicy, Sampler
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.regression import check_method
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.recipes.noise import (
    NoiseOptions,
    audit_row,
    counted,
    diffusion_levels,
    noise_options,
    require_selection,
)
from immiscible_policy.recipes.objective import PolicyObjective, ShuffledOrder, conditions
from immiscible_policy.recipes.robot_config import SCHEMA, TrainConfig
from immiscible_policy.results.plots import learning_curves
from immiscible_policy.results.summary import markdown, scores, summarize
from immiscible_policy.results.writer import save_figure
from immiscible_policy.store.rows import EpisodeRow, append_rows, read_rows, read_run
from immiscible_policy.tasks import find_task, open_demonstrations, task_windows
from immiscible_policy.training.seed import Work, initial_state, run_seed, seed_directory
from immiscible_policy.training.state import TrainState
from immiscible_policy.training.training import Report, Training

AUDITED = 16
"""Batches of each noise audit during training."""


class Parts(NamedTuple):
    """Everything a run needs, built and checked before anything is written.

    Attributes:
        demos: The demonstrations.
        data_hash: Their content hash.
        training: Windows that are trained on.
        validation: Windows held out, or None.
        spec: The policy's sizes.
        counted: Which actions of the training windows enter the selection's distance, or None for all.
        levels: Diffusion steps at which the chosen noise is used, or None for all.
        noise: How the noise is chosen.
        sampler: How evaluation denoises.
        starts: Start seeds of every evaluation.
    """

    demos: Demonstrations
    data_hash: str
    training: Windows
    validation: Windows | None
    spec: PolicySpec
    counted: Tensor | None
    levels: range | None
    noise: NoiseOptions
    sampler: Sampler
    starts: list[int]


def build_parts(config: TrainConfig) -> Parts:
    """Build everything that could be wrong, and write nothing.

    Raises:
        ValueError: If a setting or the data is unusable; one line says which.
    """
    check_method(config.method, noise=config.noise["name"], obs=config.obs)
    sampler = Sampler(config.solver, config.sampling_steps, config.engine)  # type: ignore[arg-type]
    layout = Layout(config.horizon, config.obs_steps, config.action_steps)
    task = find_task(config.task)
    starts = task.starts(config.starts, config.episodes)
    demos = open_demonstrations(task, config.data)
    train_ids, held_out = split_episodes(len(demos.episode_ends), config.validation, config.train_episodes)
    training = demos.select(train_ids)
    seen = (config.obs, layout, config.images)
    windows = task_windows(task, task.mirror(training) if config.mirror else training, *seen)
    validation = task_windows(task, demos.select(held_out), *seen) if len(held_out) else None
    per_epoch = len(windows) / config.batch_size
    noise = noise_options(config.noise, steps=config.steps, batch_size=config.batch_size, steps_per_epoch=per_epoch)
    defaults = {"mask": "none", "select_for": "action", "select_at": "all"}
    require_selection(noise.name, {key: getattr(config, key) for key, plain in defaults.items()
                                   if getattr(config, key) != plain})  # fmt: skip
    levels = diffusion_levels(config.select_at, config.diffusion_steps)
    spec = PolicySpec(
        obs=config.obs,
        obs_dim=windows.obs.shape[-1],
        action_dim=windows.action.shape[-1],
        horizon=config.horizon,
        obs_steps=config.obs_steps,
        action_steps=config.action_steps,
        diffusion_steps=config.diffusion_steps,
        data_scale=config.data_scale,
        down_dims=tuple(config.down_dims),
        step_embed_dim=config.step_embed_dim,
        kernel_size=config.kernel_size,
        groups=config.groups,
        encoder=_encoder_spec(config, windows),
        method=config.method,
    )
    with torch.device("meta"):  # sizes and sampler fit together, or one line says why not
        Agent(build_policy(spec), spec, sampler)
    mask = counted(windows, config.mask, layout)
    data_hash = content_hash(demos, images=windows.footage is not None and config.images == "stored")
    return Parts(demos, data_hash, windows, validation, spec, mask, levels, noise, sampler, starts)


def _encoder_spec(config: TrainConfig, windows: Windows) -> EncoderSpec | None:
    """What encodes the frames, if there are any."""
    if windows.footage is None:
        return None
    frames = windows.footage.frames
    side = min(min(shown.shape[1:3]) for shown in frames.values())
    if config.crop > side:
        raise ValueError(f"crop={config.crop}: the frames have {side} pixels; use crop={side} or less")
    return EncoderSpec(tuple(frames), config.crop, config.encoder_width, config.shared_encoder)


def train_seed(config: TrainConfig, parts: Parts, run: Path, seed: int, report: Report) -> None:
    """Train one seed from scratch, or from its newest checkpoint, as `run_seed`; evaluated on PushT."""

    def prepare() -> Work:
        state, policy = build_state(config, parts, seed)
        windows = parts.training.to(config.device)
        objective = PolicyObjective(
            policy,
            windows,
            _fitted(config, parts.noise, policy, windows),
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=seed,
            counted=None if parts.counted is None else parts.counted.to(config.device),
            levels=parts.levels,
            crop=config.crop,
        )
        episodes = seed_directory(run, seed) / "episodes.csv"

        def score(state: TrainState) -> dict[str, Any]:
            with state.ema_weights():
                agent = Agent(policy, parts.spec, parts.sampler)
                rows = evaluate(agent, parts.starts, seed=seed, checkpoint=state.step)
                held_out = _validation_loss(config, parts, policy)
            append_rows(episodes, rows)
            return _means(rows) | held_out | _noise_audit(objective, state.step)

        return Work(state, objective, spec_metadata(parts.spec), score, lambda: _mean_coverage(episodes))

    run_seed(config, parts.data_hash, run, seed, report, prepare)


def build_state(config: TrainConfig, parts: Parts, seed: int) -> tuple[TrainState, ChunkPolicy]:
    """The training state at step 0, and the policy in it; weights are a function of the seed."""
    observation = Normalizer.fit(parts.training.obs)
    action = Normalizer.fit(parts.training.action)
    with ALONE:  # initialisers draw from the global stream; weights are a function of the seed
        torch.manual_seed(derive_seed("weights", seed))
        policy = build_policy(parts.spec, observation, action).to(config.device)
    return initial_state(config, policy, seed), policy


def _fitted(config: TrainConfig, noise: NoiseOptions, policy: ChunkPolicy, windows: Windows) -> Selector:
    """What chooses the noise, fitted to the training windows where there is something to fit; a function of these."""
    with torch.no_grad():
        seen = None
        if config.select_for == "residual":
            seen = conditions(policy, windows, config.crop, torch_generator(config.device, "residual"))
        return noise.build(policy.clean(windows.action), seen)


def _noise_audit(objective: PolicyObjective, step: int) -> dict[str, float | None]:
    """What selection does to the noise at this step: `noise/...`."""
    if not isinstance(objective.policy, DiffusionPolicy):
        return {}
    windows, policy = objective.windows, objective.policy
    own = objective.order
    order = ShuffledOrder(own.size, own.batch_size, own.seed, own.device)  # batches are prepared from the other one
    rows = torch.cat([order.rows(step + later) for later in range(AUDITED)])
    x, condition = policy.clean(windows.action[rows]), policy.condition(objective.observed(windows[rows], step))
    size = objective.order.batch_size
    mask = objective.mask(rows)
    return audit_row(objective.select, x, batch_size=size, condition=condition, mask=mask, step=step)


def _validation_loss(config: TrainConfig, parts: Parts, policy: ChunkPolicy) -> dict[str, float]:
    """Loss on the held-out windows, with the same vanilla noise at every step of training."""
    if parts.validation is None:
        return {}
    objective = PolicyObjective(
        policy,
        parts.validation.to(config.device),
        make_selector("vanilla"),
        batch_size=min(config.batch_size, len(parts.validation)),
        accumulate=1,
        seed=0,
    )
    batches = -(-len(parts.validation) // objective.order.batch_size)
    with torch.no_grad():
        losses = [float(objective.loss(objective.batches(i)[0])) for i in range(batches)]
    return {"validation_loss": sum(losses) / len(losses)}


def _means(rows: list[EpisodeRow]) -> dict[str, float]:
    count = len(rows)
    return {
        "coverage": sum(row.max_coverage for row in rows) / count,
        "reward": sum(row.max_reward for row in rows) / count,
        "final_coverage": sum(row.final_coverage for row in rows) / count,
        "success": sum(row.success for row in rows) / count,
        "episodes": count,
    }


def _mean_coverage(episodes: Path) -> dict[int, float]:
    """Mean coverage of each evaluated step."""
    coverage: dict[int, list[float]] = {}
    for row in read_rows(episodes) if episodes.exists() else []:
        coverage.setdefault(row.checkpoint, []).append(row.max_coverage)
    return {step: sum(values) / len(values) for step, values in coverage.items()}


def _data(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    return {"path": str(parts.demos.path), "content_hash": parts.data_hash, "episodes": parts.demos.n_episodes}


def _plan(config: TrainConfig, parts: Parts) -> list[str]:
    """What will happen, for people."""
    with torch.device("meta"):  # sizes without memory
        parameters = sum(p.numel() for p in build_policy(parts.spec).parameters())
    evaluations = -(-config.steps // (config.eval_every or config.steps))
    epochs = config.steps * config.batch_size / len(parts.training)
    return [
        f"data:   {parts.demos.path}: {len(parts.demos.episode_ends)} episodes, {len(parts.training):,} training "
        f"windows, content {parts.data_hash[:12]}",
        f"policy: {parameters:,} parameters, {config.precision} on {config.device}",
        f"plan:   {config.steps:,} steps of {config.batch_size} windows ({epochs:.0f} epochs), "
        f"{evaluations} evaluations of {len(parts.starts)} starts",
    ]


def _summarise(run: Path) -> str:
    """The run's summary and its learning curve; nothing before the first evaluation."""
    if not any(run.glob("seed_*/episodes.csv")):
        return ""
    rows = read_run(run)
    save_figure(learning_curves({run.name: scores(rows.seeds)}), run / "coverage.png")
    return f"{markdown(run.name, summarize(rows))}\nsaved in {run}/summary.md, summary.json, coverage.png"


TRAINING = Training(__name__, SCHEMA, build_parts, train_seed, _data, _plan, _summarise)
