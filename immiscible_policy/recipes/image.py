"""Training one seed of an image model: the parts are built here, handed to the loop, and its samples drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.capture import ALONE
from immiscible_policy.image.build import ImageSpec, Model, Spec, build_image_model, read_spec, spec_metadata
from immiscible_policy.image.consistency import ConsistencyModel
from immiscible_policy.image.data import Images, load_images, to_bytes, to_pixels
from immiscible_policy.image.evaluation.measure import start_noise
from immiscible_policy.image.evaluation.pictures import save_tiles
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.image.flow import FlowMatching
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.prompts import NONE, prompts_for
from immiscible_policy.noise import make_selector
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.recipes.image_config import SCHEMA, ImageConfig
from immiscible_policy.recipes.image_objective import ImageObjective
from immiscible_policy.recipes.noise import NoiseOptions, audit_row, noise_options
from immiscible_policy.recipes.objective import micro_batches
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.checkpoint import newest_checkpoint
from immiscible_policy.training.seed import Work, initial_state, run_seed, seed_directory
from immiscible_policy.training.state import TrainState
from immiscible_policy.training.training import Report, Training

AUDITED = 4
"""Batches of each noise audit during training."""


class Parts(NamedTuple):
    """Everything a run needs, built and checked before anything is written.

    Attributes:
        images: The training images.
        data_hash: Their content hash.
        spec: The model's sizes.
        parameters: Of the network that trains.
        noise: How the noise is chosen.
    """

    images: Images
    data_hash: str
    spec: Spec
    parameters: int
    noise: NoiseOptions


def build_parts(config: ImageConfig) -> Parts:
    """Build everything that could be wrong, and write nothing.

    Raises:
        ValueError: If a setting or the data is unusable; one line says which.
    """
    spec = image_spec(config)
    if isinstance(spec, ImageSpec):
        with torch.device("meta"):  # sizes without memory
            model = _build(config, spec)
    else:
        model = _build(config, spec)
        _require_same_parts(Path(str(config.out)), spec)
    if config.sampling_steps is not None:
        _require_steps(model, config.sampling_steps)
    noise = {key: value for key, value in config.noise.items() if key != "potentials"}
    images = load_images(config.dataset, str(config.data), size=config.size, limit=config.limit)
    images = prompts_for(images, config.prompts if config.model == "sd" else NONE)
    per_epoch = len(images) / config.batch_size
    options = noise_options(noise, steps=config.steps, batch_size=config.batch_size, steps_per_epoch=per_epoch)
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    return Parts(images, images.content_hash, spec, parameters, options)


def image_spec(config: ImageConfig) -> Spec:
    """The sizes of the model that the options ask for.

    Raises:
        ValueError: If ready-made parts of Stable Diffusion are missing.
    """
    if config.model != "sd":
        return ImageSpec(
            model=config.model,
            size=config.size,
            channels=tuple(config.channels),
            layers=config.layers,
            attention=tuple(config.attention),
            groups=config.groups,
            head_channels=config.head_channels,
            dropout=config.dropout,
            layout=config.layout,
            data_scale=config.data_scale,
            diffusion_steps=config.diffusion_steps,
            training_steps=config.steps if config.model == "consistency" else None,
            metric=config.metric,
        )
    try:
        from immiscible_policy.image.stable_diffusion import StableDiffusionSpec, pinned
    except ImportError as error:
        raise ValueError(f"model=sd needs {error.name}: pip install 'immiscible-policy[sd]'") from None
    spec = StableDiffusionSpec(
        pretrained=str(config.pretrained),
        init=config.init,
        size=config.size,
        data_scale=config.data_scale,
        noise_offset=config.noise_offset,
        prompt_dropout=config.prompt_dropout,
        guidance=config.guidance,
        gradient_checkpointing=config.gradient_checkpointing,
        frozen_precision=config.frozen_precision,
    )
    return pinned(spec)


def _require_steps(model: Model, steps: int) -> None:
    """Refuse now the sampling steps that the first sample grid would refuse."""
    if isinstance(model, ConsistencyModel):
        model.sampling_levels(steps)
    elif not isinstance(model, FlowMatching):  # which takes any number
        model.ddim(steps)


def _require_same_parts(run: Path, spec: Spec) -> None:
    """Refuse to train on beside other ready-made parts than those that a run began with."""
    for checkpoints in run.glob("seed_*/checkpoints"):
        newest = newest_checkpoint(checkpoints)
        if newest is not None and read_spec(newest) != spec:
            raise ValueError(
                f"{newest.path} was trained beside other parts than pretrained= holds now; restore them or name "
                "another out="
            )


def train_seed(config: ImageConfig, parts: Parts, run: Path, seed: int, report: Report) -> None:
    """Train one seed from scratch, or from its newest checkpoint, as `run_seed`; draws samples on the way."""
    directory = seed_directory(run, seed)

    def prepare() -> Work:
        state, model = build_state(config, parts, seed)
        objective = ImageObjective(
            model,
            parts.images.to(config.device),
            parts.noise.selector(),
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            flip=config.flip,
            seed=seed,
        )

        def evaluate(state: TrainState) -> dict[str, Any]:
            state.model.eval()
            found = fixed_loss(objective, config) | noise_audit(objective, state.step)
            with state.ema_weights():
                draw_samples(model, parts.images, config, directory / "samples" / f"step_{state.step:06d}.png")
                if state.step == config.steps:
                    export_diffusers(model, parts.spec, directory / "diffusers")
            return found

        return Work(state, objective, spec_metadata(parts.spec), evaluate, dict)

    run_seed(config, parts.data_hash, run, seed, report, prepare)


def build_state(config: ImageConfig, parts: Parts, seed: int) -> tuple[TrainState, Any]:
    """The training state at step 0, and the model in it; weights are a function of the seed."""
    with ALONE:  # initialisers draw from the global stream; weights are a function of the seed
        torch.manual_seed(derive_seed("weights", seed))
        model: Any = _build(config, parts.spec).to(config.device)
    return initial_state(config, model, seed), model


@torch.no_grad()
def fixed_loss(objective: ImageObjective, config: ImageConfig) -> dict[str, float]:
    """Loss of the trained weights on one batch of images, noise and times that never change: `fixed_loss`.

    The noise is vanilla whatever the training's selector, so that the values of two selectors mean the same.
    """
    rows = torch.arange(min(config.batch_size, len(objective.images)), device=objective.device)
    batch = objective.model.noised(
        to_pixels(objective.images.pixels(rows)),
        make_selector("vanilla"),
        step=config.steps - 1,
        generator=torch_generator(objective.device, "fixed"),
        prompts=objective.images.prompts(rows),
    )
    parts = micro_batches(batch, config.accumulate)
    losses = [float(objective.model.loss(part)) * len(part[0]) for part in parts]
    return {"fixed_loss": sum(losses) / len(batch[0])}


@torch.no_grad()
def noise_audit(objective: ImageObjective, step: int) -> dict[str, float | None]:
    """What selection does to the noise at this step: `noise/...`."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    def watch(x: Tensor, *, condition: Tensor | None = None, **others: Any) -> Tensor:
        seen.append((x, condition))
        return torch.zeros_like(x)

    watching = ImageObjective(
        objective.model,
        objective.images,
        watch,
        batch_size=objective.order.batch_size,
        flip=objective.flip,
        seed=objective.seed,
    )
    for later in range(AUDITED):
        watching.batches(step + later)
    x = torch.cat([clean for clean, _ in seen])
    conditions = [condition for _, condition in seen if condition is not None]
    condition = torch.cat(conditions) if conditions else None
    return audit_row(objective.select, x, batch_size=objective.order.batch_size, condition=condition, step=step)


def draw_samples(model: ImageModel, images: Images, config: ImageConfig, path: Path) -> None:
    """Draw a grid of samples, from the same start noises at every step and for every selector."""
    rows = torch.arange(config.samples)
    noise = start_noise(model.noise_shape, rows, seed=0).to(config.device)
    generator = torch_generator(config.device, "samples")
    prompts = images.prompts(rows % len(images))
    drawn = model.sample(noise, config.sampling_steps, prompts=prompts, generator=generator).images
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tiles(path, to_bytes(drawn.cpu()))


def _build(config: ImageConfig, spec: Spec) -> Model:
    return build_image_model(spec, lpips=Path(config.lpips) if config.lpips else None)


def _data(config: ImageConfig, parts: Parts) -> dict[str, Any]:
    return {
        "dataset": config.dataset,
        "path": str(config.data),
        "content_hash": parts.data_hash,
        "images": len(parts.images),
    }


def _plan(config: ImageConfig, parts: Parts) -> list[str]:
    """What will happen, for people."""
    epochs = config.steps * config.batch_size / len(parts.images)
    return [
        f"data:   {config.dataset} in {config.data}: {len(parts.images):,} images of {config.size} x {config.size}, "
        f"content {parts.data_hash[:12]}",
        f"model:  {config.model}, {parts.parameters:,} parameters, {config.precision} on {config.device}",
        f"plan:   {config.steps:,} steps of {config.batch_size} images ({epochs:.1f} epochs), "
        f"{config.samples} samples every {config.eval_every:,} steps",
        *_plan_of_average(config),
    ]


def _plan_of_average(config: ImageConfig) -> list[str]:
    """A warning where the EMA will not have forgotten the weights that training began with."""
    left = first_share(config)
    if left < 0.01:
        return []
    return [
        f"note:   after {config.steps:,} steps {left:.0%} of the averaged weights, which draw the samples, are still "
        "the first ones; ema_power=0.75 forgets sooner"
    ]


def first_share(config: ImageConfig) -> float:
    """Share of the EMA at the end that is its first value: the product of the decays of all updates but the first."""
    n = np.arange(1, min(config.steps, 10**6))  # beyond those nothing is left in any case
    return float(np.minimum(1 - (1.0 + n) ** -config.ema_power, config.ema_max).prod())


def _summarise(run: Path) -> str:
    """What each seed's metrics come to, as `summary.json`; nothing before the first evaluation."""
    seeds = {path.parent.name: _summary(path) for path in sorted(run.glob("seed_*/metrics.jsonl"))}
    seeds = {name: found for name, found in seeds.items() if found}
    if not seeds:
        return ""
    write_atomically(run / "summary.json", (json.dumps({"seeds": seeds}, indent=2) + "\n").encode())
    lines = [
        f"{name}: step {found['step']:,}, loss on fixed noise and times {found['fixed_loss']:.4f} "
        f"(first measured {found['first_fixed_loss']:.4f}), {found['images_per_second']:,.0f} images/s"
        for name, found in seeds.items()
    ]
    return "\n".join([*lines, f"samples in {run}/seed_*/samples, metrics in seed_*/metrics.jsonl; measure with "
                              f"python eval_image.py run={run}"])  # fmt: skip


def _summary(metrics: Path) -> dict[str, Any]:
    """First and last loss of a seed, and its speed."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    evaluated = [row for row in rows if "fixed_loss" in row]
    if not evaluated:
        return {}
    config = SCHEMA.read(metrics.parent.parent / "config.yaml")
    rates = sorted(row["rate"] for row in rows if "rate" in row)
    return {
        "step": evaluated[-1]["step"],
        "first_fixed_loss": evaluated[0]["fixed_loss"],
        "fixed_loss": evaluated[-1]["fixed_loss"],
        "images_per_second": rates[len(rates) // 2] * config.batch_size,
    }


TRAINING = Training(__name__, SCHEMA, build_parts, train_seed, _data, _plan, _summarise)
