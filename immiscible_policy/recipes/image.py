"""The recipe of an image model: images, a model, noise, and samples drawn on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.data import Images, load_images, to_bytes, to_pixels
from immiscible_policy.image.data.images import NONE, prompts_for
from immiscible_policy.image.evaluation.measure import start_noise
from immiscible_policy.image.evaluation.pictures import save_tiles
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.spec import ImageSpec, Spec, StableDiffusionSpec, read_spec, spec_metadata
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.randomness import torch_generator
from immiscible_policy.recipes.image_config import SCHEMA, ImageConfig
from immiscible_policy.recipes.noise import NoiseOptions, noise_audit, noise_options, require_noise
from immiscible_policy.recipes.options import options_of
from immiscible_policy.results.writer import png
from immiscible_policy.solver import Pndm, Solver
from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.training.batches import ShuffledOrder, Together, cut, size
from immiscible_policy.training.duration import Rehearsal, blank
from immiscible_policy.training.loggers import Media
from immiscible_policy.training.memory import Footprint, saved_bytes
from immiscible_policy.training.recipe import Work
from immiscible_policy.training.seed import weights_of
from immiscible_policy.training.state import TrainState

AUDITED = 4
"""Batches of each noise audit during training."""


ADAPTIVE_CALLS = 100
"""Network calls of the adaptive solver, about."""


@dataclass(eq=False)
class ImageObjective:
    """An image model's loss on batches of images.

    Batch, flips, noise and diffusion steps are pure functions of (seed, step). They are drawn for the whole batch
    before it is cut into micro-batches, so accumulation changes memory, not the result. With `select_over` above 1 they
    are drawn for so many successive batches at once, so that an assignment pairs within all of them.

    Attributes:
        images: All training images, on the model's device.
        select_over: Batches whose noise is chosen together.
        accumulate: Micro-batches that a batch is cut into.
        flip: Whether each image is mirrored left to right with probability 1/2.
    """

    model: ImageModel
    images: Images
    select: Selector
    _: KW_ONLY
    batch_size: int
    seed: int
    accumulate: int
    flip: bool
    select_over: int = 1

    def __post_init__(self) -> None:
        self.device = next(self.model.denoiser.parameters()).device
        self.order = ShuffledOrder(len(self.images), self.select_over * self.batch_size, self.seed, self.device)
        self.together = Together(self._noised, self.select_over)

    def batches(self, step: int) -> list[Any]:
        """The noised micro-batches of a training step."""
        return cut(self.together.batch(step), self.accumulate)

    def _noised(self, pool: int) -> Any:
        """All batches whose noise is chosen together, noised."""
        rows = self.order.rows(pool)
        pixels = to_pixels(self.images.pixels(rows))
        if self.flip:
            generator = torch_generator(self.device, "flips", self.seed, pool)
            mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=self.device) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        generator = torch_generator(self.device, "noise", self.seed, pool)
        prompts, first = self.images.prompts(rows), pool * self.select_over
        return self.model.noised(pixels, self.select, step=first, generator=generator, prompts=prompts)

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a micro-batch."""
        return self.model.loss(batch)


@dataclass(frozen=True)
class ImageRecipe:
    """An image model in training, see `training.recipe`."""

    schema: ClassVar = SCHEMA
    load: ClassVar = staticmethod(load_images)
    shown: ClassVar = {"fixed_loss": "loss on fixed noise and times {:.4f}"}

    config: ImageConfig
    images: Images
    spec: Spec
    footprint: Footprint
    noise: NoiseOptions

    @classmethod
    def prepare(cls, config: ImageConfig, load: Callable[..., Images] = load_images) -> ImageRecipe:
        """Build everything that could be wrong and write nothing; ValueError says in one line what is unusable."""
        images = load(config.dataset, str(config.data), size=config.size, limit=config.limit)
        images = prompts_for(images, config.prompts if config.model == "sd" else NONE)
        config = config.sized(len(images))
        spec = image_spec(config)
        if isinstance(spec, ImageSpec):
            with torch.device("meta"):  # sizes without memory
                model = build_image_model(spec)
        else:
            model = build_image_model(spec)
            run = RunDirectory(str(config.out))
            for newest in filter(None, (run.seed(number).newest() for number in run.seeds())):
                if read_spec(newest) != spec:
                    raise ValueError(
                        f"{newest.path} was trained beside other parts than pretrained= has now; restore them or "
                        "name another out="
                    )
        solver(config, model)
        size = config.chosen_together
        per_epoch = len(images) / config.batch_size
        options = noise_options(
            config.noise,
            steps=config.steps,
            batch_size=size,
            steps_per_epoch=per_epoch,
            select_over=config.select_over,
        )
        require_noise(options.select, config.noise["name"], model.coder.shape)
        selection = options.memory(size, math.prod(model.coder.shape))
        return cls(config, images, spec, _footprint(model, images, config)._replace(selection=selection), options)

    def require_calls(self, counts: Iterable[int], spacing: str) -> None:
        """Raise a ValueError for a number of network calls, or a spacing, that the model's solver has not."""
        if isinstance(self.spec, ImageSpec):  # of Stable Diffusion the parts would have to be read
            with torch.device("meta"):
                model = build_image_model(self.spec)
            for count in counts:
                solver(replace(self.config, sampling_steps=count, spacing=spacing), model)

    @property
    def data(self) -> dict[str, Any]:
        """What provenance says of the images."""
        config = self.config
        origin = {"dataset": config.dataset, "path": str(config.data)}
        return origin | {"content_hash": self.images.content_hash, "images": len(self.images)}

    def describe(self) -> list[str]:
        """Lines that say what will happen, and a warning where the EMA will not have forgotten the first weights."""
        config, images = self.config, self.images
        epochs = config.steps * config.batch_size / len(images)
        left = first_share(config)
        sooner = "" if 0 < config.ema_power <= 0.75 else "; ema_power=0.75 forgets them sooner"
        forgotten = [
            f"note:   after {config.steps:,} steps {left:.0%} of the average are still the initial weights{sooner}"
        ]
        return [
            f"data:   {config.dataset} in {config.data}: {len(images):,} images of {config.size} x {config.size}, "
            f"content {images.content_hash[:12]}",
            f"model:  {config.model}, {self.footprint.parameters:,} parameters, {config.precision} on {config.device}",
            f"plan:   {config.steps:,} steps of {config.batch_size} images ({epochs:.1f} epochs), "
            f"{config.samples} samples every {config.eval_every:,} steps",
            *(forgotten if left >= 0.01 else []),
        ]

    def rehearsal(self, device: str) -> Rehearsal | None:
        """The denoiser, and how many samples drawing a picture's samples shows it."""
        if not isinstance(self.spec, ImageSpec):
            return None
        with torch.device("meta"):
            model = build_image_model(self.spec)
        denoiser, chosen = blank(model.denoiser, device), solver(self.config, model)

        def run(rows: int) -> Tensor:
            noisy, times = torch.zeros(rows, *model.coder.shape, device=device), torch.zeros(rows, device=device)
            return denoiser(noisy, times).sample

        calls = ADAPTIVE_CALLS if chosen is None else chosen.steps
        return Rehearsal(list(denoiser.parameters()), run, self.config.samples * calls)

    def model(self, seed: int) -> ImageModel:
        """The model with its first weights, a function of the seed."""
        with weights_of(seed):
            return build_image_model(self.spec).to(self.config.device)

    def build(self, seed: SeedDirectory) -> Work:
        """One seed: it draws samples at every evaluation, and exports the model at the end."""
        config, model = self.config, self.model(seed.number)
        objective = ImageObjective(
            model,
            self.images.to(config.device),
            self.noise.select,
            batch_size=config.batch_size,
            select_over=config.select_over,
            accumulate=config.accumulate,
            flip=config.flip,
            seed=seed.number,
        )

        audited = lru_cache(maxsize=1)(partial(noise_audit, objective, batches=AUDITED))  # shared with loggers

        def drawn(state: TrainState) -> Path:
            return seed.path / "samples" / f"step_{state.step:06d}.png"

        def evaluate(state: TrainState) -> dict[str, Any]:
            state.model.eval()
            measured = fixed_loss(objective, config) | audited(state.step).metrics()
            with state.ema_weights():
                draw_samples(model, self.images, config, drawn(state))
                if state.step == config.steps:
                    export_diffusers(model, seed.path / "diffusers", solver(config, model))
            return measured

        def media(state: TrainState) -> Media:
            noise = png(audited(state.step).plot())
            return Media({"samples": drawn(state).read_bytes(), "noise/audit": noise})

        return Work(model, objective, spec_metadata(self.spec), evaluate, dict, media)

    @staticmethod
    def summarise(run: RunDirectory) -> str:
        """What each seed's metrics come to; nothing before the first evaluation."""
        seeds: dict[str, dict[str, Any]] = {}
        for seed in map(run.seed, run.seeds()):
            rows = seed.metrics()
            evaluated = [row for row in rows if "fixed_loss" in row]
            if evaluated:
                rates = sorted(row["rate"] for row in rows if "rate" in row)
                seeds[seed.path.name] = {
                    "step": evaluated[-1]["step"],
                    "first_fixed_loss": evaluated[0]["fixed_loss"],
                    "fixed_loss": evaluated[-1]["fixed_loss"],
                    "images_per_second": rates[len(rates) // 2] * run.config["batch_size"],
                }
        if not seeds:
            return ""
        run.write_summary({"seeds": seeds})
        lines = [
            f"{name}: step {summary['step']:,}, loss on fixed noise and times {summary['fixed_loss']:.4f} "
            f"(at the first evaluation {summary['first_fixed_loss']:.4f}), {summary['images_per_second']:,.0f} images/s"
            for name, summary in seeds.items()
        ]
        planned = run.config["steps"]
        unfinished = [f"{name} at step {own['step']:,}" for name, own in seeds.items() if own["step"] < planned]
        if unfinished:
            lines.insert(0, f"unfinished: {', '.join(unfinished)}")
        return "\n".join([*lines, f"samples in {run.path}/seed_*/samples; measure with "
                                  f"python eval_image.py run={run.path}"])  # fmt: skip


def _footprint(model: ImageModel, images: Images, config: ImageConfig) -> Footprint:
    """The denoiser's parameters, what it keeps of two samples if it was built without memory, and the images."""
    parameters, rows, kept = list(model.denoiser.parameters()), 2, 0
    if parameters[0].is_meta:
        with torch.device("meta"):
            noisy, times = torch.zeros(rows, *model.coder.shape), torch.zeros(rows)
            kept = saved_bytes(lambda: model.denoiser(noisy, times), parameters)
    return Footprint(sum(p.numel() for p in parameters), kept // rows, len(images) * 3 * config.size**2)


def image_spec(config: ImageConfig) -> Spec:
    """The sizes of the model that the options ask for.

    ValueError if pretrained parts of Stable Diffusion are missing.
    """
    if config.model != "sd":
        training_steps = config.steps if config.model == "consistency" else None
        return ImageSpec(**options_of(config, ImageSpec), training_steps=training_steps)
    try:
        from immiscible_policy.image.stable_diffusion import pinned
    except ImportError as error:
        raise ValueError(f"model=sd needs {error.name}: pip install 'immiscible-policy[sd]'") from None
    return pinned(StableDiffusionSpec(**options_of(config, StableDiffusionSpec)))


def solver(config: ImageConfig, model: ImageModel) -> Solver | Pndm | None:
    """How samples are drawn; ValueError if the model has no such solver."""
    return model.choose(config.solver, config.sampling_steps, config.spacing, config.eta)


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
    losses = [float(objective.model.loss(part)) * size(part) for part in cut(batch, config.accumulate)]
    return {"fixed_loss": sum(losses) / size(batch)}


def draw_samples(model: ImageModel, images: Images, config: ImageConfig, path: Path) -> None:
    """Draw a grid of samples, from the same start noises at every step and for every selector."""
    rows, generator = torch.arange(config.samples), torch_generator(config.device, "samples")
    noise = start_noise(model.coder.shape, rows, seed=0).to(config.device)
    prompts = images.prompts(rows % len(images))
    drawn = model.sample(noise, solver(config, model), prompts=prompts, generator=generator).images
    save_tiles(path, to_bytes(drawn.cpu()))


def first_share(config: ImageConfig) -> float:
    """Share of the EMA at the end that is its first value: the product of the decays of all updates but the first."""
    n = np.arange(1, min(config.steps, 10**6))  # beyond those nothing is left in any case
    return float(np.minimum(1 - (1.0 + n) ** -config.ema_power, config.ema_max).prod())
