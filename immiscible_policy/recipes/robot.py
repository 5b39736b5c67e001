"""The recipe of a robot policy: windows of demonstrations, a policy, noise, and evaluation on its task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from immiscible_policy.cli import CommandError, parse_range
from immiscible_policy.demos.checks import outlier_problems, resolution_problems
from immiscible_policy.demos.keys import require_keys
from immiscible_policy.demos.split import split_episodes
from immiscible_policy.demos.store import content_hash
from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.evaluation.agent import Agent, read_policy, spec_metadata
from immiscible_policy.evaluation.offline import SAMPLES, HeldOut, linear_r2, score
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import BATCH, evaluate
from immiscible_policy.evaluation.scores import finished, mean_by_step, means, scores, set_means
from immiscible_policy.evaluation.trial import try_task
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.noise import CONDITIONAL_MEANS, cross_fitted, make_selector
from immiscible_policy.path import Regression
from immiscible_policy.policy import Pictured, Policy
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.normalizer import SMALLEST_RANGE, Normalizer, action_bounds, half_range
from immiscible_policy.randomness import torch_generator
from immiscible_policy.recipes.noise import (
    NoiseOptions,
    actions_compared,
    diffusion_levels,
    noise_audit,
    noise_options,
    require_noise,
)
from immiscible_policy.recipes.options import options_of
from immiscible_policy.recipes.robot_config import SCHEMA, RobotConfig
from immiscible_policy.recipes.robot_objective import RobotObjective, conditions
from immiscible_policy.recipes.teacher import find_teacher, make_teach, weights_hash
from immiscible_policy.results.plots import learning_curves, selector_of
from immiscible_policy.results.summary import markdown, summarize
from immiscible_policy.results.video import encode_gif, frames
from immiscible_policy.results.writer import png, save_figure
from immiscible_policy.solver import Solver
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import RunDirectory, SeedDirectory, require_data
from immiscible_policy.tasks import Task, find_task, open_demonstrations, primary, summarised, task_windows
from immiscible_policy.training.duration import Rehearsal, blank
from immiscible_policy.training.loggers import Media
from immiscible_policy.training.memory import Footprint, saved_bytes
from immiscible_policy.training.recipe import Work
from immiscible_policy.training.seed import weights_of
from immiscible_policy.training.state import TrainState

DATA_OPTIONS = ("data", "obs", "action", "images", "resize", "normalize", "validation", "train_episodes", "mirror")
"""Options that say what `load_data` is to load."""
AUDITED = 16
"""Batches of each noise audit during training."""
SHOWN, TILE, EPISODE_EVERY = 4, 128, 10
"""Rollouts that loggers show, their size in pixels, and the steps between two points of their curve."""
IDLE = 0.005
"""A selector that changes the distance to the data by less [%] than this changes nothing."""


class Range(NamedTuple):
    """The least and the greatest of each number of an observation or an action (D,)."""

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, values: np.ndarray) -> Range:
        """The range of values (T, D)."""
        rows = torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))
        return cls(rows.amin(dim=0), rows.amax(dim=0))

    @property
    def half(self) -> torch.Tensor:
        """Half the range of each dimension (D,); 1 where it is constant."""
        return half_range(self.low, self.high)

    def __str__(self) -> str:
        """Each dimension: `-1.2..0.9`, or `constant 0.3`, which is moved to 0 and not stretched."""
        pairs = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return ", ".join(
            f"constant {low:.4g}" if high - low < SMALLEST_RANGE else f"{low:.4g}..{high:.4g}" for low, high in pairs
        )


class Loaded(NamedTuple):
    """Demonstrations of a task, as windows to train on and held-out episodes, and what they are normalised by."""

    task: Task
    path: Path
    content_hash: str
    episodes: int  # in the store
    training: Windows
    held_out: HeldOut | None
    observation: dict[str, Range]  # by array, in the order in which a policy sees them
    action: Range
    notes: list[str]  # numbers that spoil the others, or are spoiled themselves, by normalisation in float32


def load_data(
    task_json: str,
    layout: Layout,
    *,
    data: str | None,
    obs: str | None,
    action: str,
    images: str,
    resize: list[int] | None,
    normalize: str,
    validation: float,
    train_episodes: int | None,
    mirror: bool,
) -> Loaded:
    """Open the demonstrations of a task, given as JSON, and cut them into windows; runs may share the result.

    Raises ValueError if the store, a camera or an option is unusable; one line says which.
    """
    task = find_task(**json.loads(task_json))
    if obs is None and data is not None:
        require_keys(data, obs, action)  # refuses, and says what there is
    demos, seen = open_demonstrations(task, data, obs, action), str(obs)
    stored, demos = demos, demos.resized((resize[0], resize[1]) if resize else None)
    train_ids, held_out_ids = split_episodes(demos.n_episodes, validation, train_episodes)
    fitted, chosen = demos, demos.select(train_ids)
    if mirror:
        fitted, chosen = task.mirror(demos), task.mirror(chosen)
    training = task_windows(task, chosen, seen, layout, images, action)
    held_out = None
    if len(held_out_ids):
        windows = task_windows(task, demos.select(held_out_ids), seen, layout, images, action)
        held_out = HeldOut(windows, layout, held_out_ids.tolist(), Range.of(demos[action]).half)
    if normalize == "train":
        fitted = chosen
    numbers = [seen] if task.observations else [key for key in seen.split(",") if key not in demos.frames]
    return Loaded(
        task,
        demos.path,
        content_hash(stored, images=training.footage is not None and images == "stored"),
        demos.n_episodes,
        training,
        held_out,
        {key: Range.of(task.observation(fitted, key)) for key in numbers},
        Range.of(fitted[action]),
        [
            *outlier_problems(action, demos[action], demos.episode_ends),
            *(line for key, values in demos.arrays.items() for line in resolution_problems(key, values)),
        ],
    )


def held_out(metadata: Mapping[str, Any], data: Path | None = None) -> HeldOut:
    """The episodes that the run of a checkpoint with these metadata held out; `data` is where its store is now.

    Raises ValueError if there are none, or the store is unusable or has changed.
    """
    config = metadata["config"]
    layout = Layout(config["horizon"], config["obs_steps"], config["action_steps"])
    options = {key: config[key] for key in DATA_OPTIONS} | ({"data": str(data)} if data else {})
    loaded = load_data(json.dumps(config["task"]), layout, **options)
    require_data(loaded.path, loaded.content_hash, metadata.get("data_hash"))
    if loaded.held_out is None:
        raise CommandError(f"validation={config['validation']}: no episode was held out, so none can be scored")
    return loaded.held_out


@dataclass(frozen=True)
class RobotRecipe:
    """A robot policy in training, see `training.recipe`.

    Attributes:
        levels: Diffusion steps at which the chosen noise is used, or None for all.
        starts: Start seeds of every evaluation.
        teachers: Hash of the weights that teach, by training seed; empty where nobody teaches.
    """

    schema: ClassVar = SCHEMA
    load: ClassVar = staticmethod(load_data)

    config: RobotConfig
    loaded: Loaded
    spec: PolicySpec
    levels: range | None
    noise: NoiseOptions
    solver: Solver
    starts: list[int]
    teachers: dict[str, str]

    @classmethod
    def prepare(cls, config: RobotConfig, load: Callable[..., Loaded] = load_data) -> RobotRecipe:
        """Build everything that could be wrong, and write nothing.

        Raises ValueError if a setting or the data is unusable; one line says which.
        """
        solver = Solver(str(config.solver), config.sampling_steps, config.spacing, config.eta)
        data = load(json.dumps(config.task), Layout.of(config), **{key: getattr(config, key) for key in DATA_OPTIONS})
        starts, windows = data.task.starts(config.starts, config.episodes), data.training
        config = config.sized(len(windows))
        per_epoch = len(windows) / config.batch_size
        together = config.chosen_together
        noise = noise_options(
            config.noise,
            steps=config.steps,
            batch_size=together,
            steps_per_epoch=per_epoch,
            select_over=config.select_over,
        )
        spec = PolicySpec(
            **options_of(config, PolicySpec),
            obs_dim=windows.obs.shape[-1],
            action_dim=windows.action.shape[-1],
            encoder=_encoder_spec(config, windows),
        )
        require_noise(noise.select, config.noise["name"], (spec.horizon, spec.action_dim))
        with torch.device("meta"):  # sizes, path and solver fit together, or one line says why not
            Agent(build_policy(spec), spec, solver)
        if data.task.has_environment:
            try_task(data.task, spec, windows.action[0, 0].numpy())
        teachers = {}
        for seed in parse_range("seed", config.seed) if config.teacher else ():
            teacher = find_teacher(RunDirectory(str(config.teacher)), RunDirectory(str(config.out)).seed(seed), spec)
            teachers[str(seed)] = weights_hash(teacher)
        levels = diffusion_levels(config.select_at, config.diffusion_steps)
        return cls(config, data, spec, levels, noise, solver, starts, teachers)

    @property
    def data(self) -> dict[str, Any]:
        """What provenance says of the demonstrations, and of who teaches."""
        data = self.loaded
        origin = {"path": str(data.path), "content_hash": data.content_hash, "episodes": data.episodes}
        return origin | ({"teachers": self.teachers} if self.teachers else {})

    @property
    def shown(self) -> dict[str, str]:
        """The task's metrics, and how many episodes they are means over."""
        task = self.loaded.task
        metrics = {metric.name: f"{metric.name} {{:.3f}}" for metric in summarised(task)}
        return metrics | {"episodes": f"({{}} {task.scored_on}s)"}

    def describe(self) -> list[str]:
        """Lines that say what will happen."""
        config, data = self.config, self.loaded
        evaluations = -(-config.steps // config.eval_every)
        held_out = f"{len(data.held_out.episodes)} held-out episodes" if data.held_out else ""
        evaluated = " and ".join(filter(None, [f"{len(self.starts)} starts" if self.starts else "", held_out]))
        fitted = "all" if config.normalize == "all" else "the training"
        epochs = config.steps * config.batch_size / len(data.training)
        return [
            f"data:   {data.path}: {data.episodes} episodes, {len(data.training):,} training "
            f"windows, content {data.content_hash[:12]}",
            f"policy: {self.footprint.parameters:,} parameters, {config.precision} on {config.device}",
            f"plan:   {config.steps:,} steps of {config.batch_size} windows ({epochs:.0f} epochs), "
            f"{evaluations} evaluations of {evaluated}",
            f"scaled to -1..1: the range of each number over {fitted} episodes (normalize={config.normalize})",
            *(f"  {name}: {values}" for name, values in data.observation.items()),
            f"  {config.action} (actions): {data.action}",
            *(f"note:   {line}; the policy does not learn them" for line in data.notes),
            *([] if self.r2 is None else [f"R^2:    the observation explains {self.r2:.0%} of the held-out actions"]),
        ]

    @cached_property
    def footprint(self) -> Footprint:
        """The policy's parameters and activations, measured without memory, and the windows of training."""
        windows, rows = self.loaded.training, 2
        parameters, run, _ = self.rehearsal("meta")
        kept = saved_bytes(lambda: run(rows), parameters)
        if self.spec.kernels == "fused" and self.config.device == "cpu":
            kept *= 2  # gradients have buffers of their own there
        frames = windows.footage.frames.values() if windows.footage else ()
        data = sum(tensor.nbytes for tensor in (windows.obs, windows.action, windows.real, *frames))
        selection = self.noise.memory(self.config.chosen_together, self.spec.horizon * self.spec.action_dim)
        return Footprint(sum(p.numel() for p in parameters), kept // rows, data, selection)

    def rehearsal(self, device: str) -> Rehearsal:
        """The policy's network and encoder, and how many samples an evaluation shows them."""
        spec, task, held_out = self.spec, self.loaded.task, self.loaded.held_out
        with torch.device("meta"):
            policy = build_policy(spec)
        blank(policy, device)

        def run(rows: int) -> torch.Tensor:
            with torch.device(device):
                observation: Any = torch.zeros(rows, spec.obs_steps, spec.obs_dim)
                if spec.encoder is not None:
                    views = (spec.obs_steps, len(spec.encoder.cameras), spec.encoder.crop, spec.encoder.crop, 3)
                    observation = Pictured(observation, torch.zeros(rows, *views, dtype=torch.uint8))
                action, times = torch.zeros(rows, spec.horizon, spec.action_dim), torch.zeros(rows)
                return policy.network(action, times, policy.encode(observation))

        chunks = 0 if held_out is None else SAMPLES * len(held_out.places)
        if task.has_environment:
            chunks += BATCH * -(-len(self.starts) // BATCH) * -(-task.max_steps // spec.action_steps)
        return Rehearsal(list(policy.parameters()), run, chunks * self.solver.steps)

    def policy(self, seed: int) -> Policy:
        """The policy with its first weights, a function of the seed."""
        config, seen, acted = self.config, self.loaded.observation.values(), self.loaded.action
        bounds = [torch.cat([torch.empty(0), *(getattr(values, end) for values in seen)]) for end in Range._fields]
        laws: dict[str, dict[str, Any]] = {
            "flow": {"law": config.times, "calls": config.sampling_steps, "spacing": config.spacing},
            "diffusion": {"min_snr": config.min_snr},
        }
        with weights_of(seed):
            normalizers = Normalizer(*bounds), Normalizer(*action_bounds(acted.low, acted.high))
            policy = build_policy(self.spec, *normalizers, **laws.get(config.method, {}))
            return policy.to(self.config.device)

    def build(self, seed: SeedDirectory) -> Work:
        """One seed, evaluated on the task."""
        config, policy = self.config, self.policy(seed.number)
        windows = self.loaded.training.to(config.device)

        teach = None
        if config.teacher:
            teacher, _ = read_policy(find_teacher(RunDirectory(config.teacher), seed, self.spec), config.device)
            policy.load_state_dict(teacher.state_dict())
            teach = make_teach(teacher, config.teacher_calls, config.precision)
        with torch.no_grad():
            target, expected = policy.clean(windows.action), None
            if config.select_for == "residual":
                seen = conditions(policy, windows, config.crop, torch_generator(config.device, "residual"))
                fit = CONDITIONAL_MEANS[config.residual_mean]
                expected = cross_fitted(fit, seen, target, windows.episode).reshape(target.shape)
                target = target - expected
            choice = self.noise.build(target)
        objective = RobotObjective(
            policy,
            windows,
            choice,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=seed.number,
            select_over=config.select_over,
            compared=actions_compared(windows, config.exclude, Layout.of(config)),
            levels=self.levels,
            crop=config.crop,
            expected=expected,
            mirrored=config.mirror_batches,
            teach=teach,
        )

        selects = not isinstance(policy.path, Regression)
        task = self.loaded.task
        probed = {"validation/r2": self.r2} if self.loaded.held_out else {}

        audited = lru_cache(maxsize=1)(partial(noise_audit, objective, batches=AUDITED))  # shared with loggers

        def measure(state: TrainState) -> dict[str, Any]:
            with state.ema_weights():
                agent = Agent(policy, self.spec, self.solver)
                rows, held_out = self._held_out(agent, seed.number, state.step)
                if task.has_environment:
                    rows = evaluate(task, agent, self.starts, seed=seed.number, checkpoint=state.step)
            seed.append_episodes(rows)
            noise = audited(state.step).metrics() if selects else {}
            figures = means(rows) | set_means(rows, task.set_metrics) | {"episodes": len(rows)}
            return figures | held_out | probed | noise

        def by_step() -> dict[int, float]:
            metric = primary(task)
            return {step: metric.sign * mean for step, mean in mean_by_step(seed.episodes(), metric.name).items()}

        def media(state: TrainState) -> Media:
            pictures = {"noise/audit": png(audited(state.step).plot())} if selects else {}
            if not task.has_environment:
                return Media(pictures)
            recorder, starts = Recorder(task), self.starts[:SHOWN]
            with state.ema_weights():
                agent, watch = Agent(policy, self.spec, self.solver), recorder.on_step
                few = {"batch_size": len(starts), "seed": seed.number, "checkpoint": state.step}
                rows = evaluate(task, agent, starts, on_step=watch, **few)  # type: ignore[arg-type]
            recording = recorder.recording(rows)
            if task.is_drawn:
                pictures["rollouts"], _ = encode_gif(frames(task, recording, SHOWN, TILE, every=3), task.fps)
            reached = recording.scores.mean(1).tolist()
            return Media(pictures, {primary(task).name: list(enumerate(reached))[::EPISODE_EVERY]})

        footage = None if self.config.resize else self.loaded.training.footage
        about = {
            "widths": {name: len(values.low) for name, values in self.loaded.observation.items()},
            "sizes": {name: list(camera.shape[1:3]) for name, camera in footage.frames.items()} if footage else {},
        }
        return Work(policy, objective, spec_metadata(self.spec) | about, measure, by_step, media)

    @cached_property
    def r2(self) -> float | None:
        """How much of the held-out actions the observation explains; None if none is held out, or nothing varies."""
        data = self.loaded
        return None if data.held_out is None else linear_r2(data.training, data.held_out.windows)

    def _held_out(self, agent: Agent, seed: int, checkpoint: int) -> tuple[list[EpisodeRow], dict[str, float]]:
        """Scores on the held-out episodes, where there are any: a row for each, and figures over all."""
        held_out = self.loaded.held_out
        if held_out is None:
            return [], {}
        rows, figures = score(agent, held_out, seed=seed, checkpoint=checkpoint)
        return rows, figures | {"validation/loss": self._validation_loss(agent.policy, held_out.windows)}

    def _validation_loss(self, policy: Policy, held_out: Windows) -> float:
        """Loss on the held-out windows, with the same vanilla noise at every step of training."""
        windows = held_out.to(self.config.device)
        size = min(self.config.batch_size, len(windows))
        objective = RobotObjective(policy, windows, make_selector("vanilla"), batch_size=size, accumulate=1, seed=0)
        with torch.no_grad():
            losses = [float(objective.loss(objective.batches(i)[0])) for i in range(-(-len(windows) // size))]
        return sum(losses) / len(losses)

    @staticmethod
    def summarise(run: RunDirectory) -> str:
        """The run's summary and its learning curve; nothing before the first evaluation."""
        if not run.is_evaluated:
            return ""
        metrics = summarised(run.task)
        selectors, picture = {run.name: selector_of(run)}, f"{metrics[0].name}.png"
        shown = finished(scores(run.episodes()), run.missing().unfinished)
        curves = learning_curves({run.name: shown}, metrics[:2], selectors=selectors)
        save_figure(curves, run.path / picture)
        summary = markdown(run.name, summarize(run), run.task) + idle(run)
        return f"{summary}\nsaved in {run.path}/summary.md, summary.json, {picture}"


def idle(run: RunDirectory) -> str:
    """A line if the audits of a run say that its selector left every sample its own noise; else nothing."""
    key, name = "noise/distance_percent", run.config["noise"]["name"]
    changes = [row[key] for seed in run.seeds() for row in run.seed(seed).metrics() if row.get(key) is not None]
    if name == "vanilla" or not changes or max(map(abs, changes)) >= IDLE:
        return ""
    cure = "give larger batches or select_over=, with c2ot a larger ratio=, or let its schedule begin earlier"
    return f"\nnoise={name} changed no noise: this is a training with noise=vanilla; {cure}\n"


def _encoder_spec(config: RobotConfig, windows: Windows) -> EncoderSpec | None:
    """What encodes the frames, if there are any."""
    if windows.footage is None:
        return None
    frames = windows.footage.frames
    sizes = {tuple(camera.shape[1:3]) for camera in frames.values()}
    if len(sizes) > 1:
        seen = ", ".join(f"{name} {tuple(camera.shape[1:3])}" for name, camera in frames.items())
        raise ValueError(f"the cameras differ in size: {seen}; scale them with resize=[96,128]")
    side = min(min(size) for size in sizes)
    if config.crop > side:
        raise ValueError(f"crop={config.crop}: the frames have {side} pixels; use crop={side} or less")
    resize = (config.resize[0], config.resize[1]) if config.resize else None
    return EncoderSpec(tuple(frames), config.crop, config.encoder_width, config.shared_encoder, resize)
