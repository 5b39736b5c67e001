"""Fréchet distances of a model's images to a reference set, all checkpoints from the same start noises.

Shape legend: B images, S pixels along a side, D features; C, H, W one start noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.image.data import Images, to_bytes, to_pixels
from immiscible_policy.image.editing import edit_region, fill_in, redraw
from immiscible_policy.image.evaluation.clip import ClipScore, RealScores
from immiscible_policy.image.evaluation.features import Extractor, features_of
from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.image.model import ImageModel
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.solver import Pndm, Solver

SHOWN = 64  # Generated images that are kept to be looked at
REFERENCE_BATCH = 500


class SolverWords(NamedTuple):
    """What `ImageModel.choose` takes; None is as in training, and where that says nothing the model's own."""

    name: str | None = None
    steps: int | None = None
    spacing: str | None = None
    eta: float | None = None

    def filled(self, config: Mapping[str, Any]) -> SolverWords:
        """The same, its gaps filled with what a training's options say."""
        keys = ("solver", "sampling_steps", "spacing", "eta")
        values: list[Any] = [config.get(key) if own is None else own for own, key in zip(self, keys, strict=True)]
        return SolverWords(*values)

    def choose(self, model: ImageModel) -> Solver | Pndm | None:
        """The solver that they name; a ValueError if the model has none such."""
        return model.choose(self.name, self.steps, self.spacing or "trailing", self.eta or 0.0)

    @property
    def words(self) -> str:
        """As in `50 leading ddim` sampling steps; `best` for the model's own number."""
        spacing = "" if self.spacing == "trailing" else self.spacing or ""
        eta = f"eta {self.eta:g}" if self.eta else ""
        return " ".join(filter(None, (str(self.steps or "best"), spacing, self.name, eta)))


@dataclass(frozen=True)
class Drawing:
    """How images are drawn from a model.

    The batch size changes nothing but rounding, except for solvers that draw more than start noises, or choose their
    steps by the error of a batch.
    """

    n: int
    solver: SolverWords
    seed: int  # names the start noises
    batch_size: int  # images at a time
    device: str
    edit: str | None  # what is done to originals, one of `EDITS`; None to draw whole images


class Reference(NamedTuple):
    """Real images as a Gaussian of features, and distances of as many images as will be generated."""

    statistics: FeatureStatistics
    n: int
    floor: float | None  # of real images to the remaining ones; None if too few remain
    noise: float  # of images of plain noise
    clip: RealScores | None = None  # of real images, where there is a CLIP model


class Quality(NamedTuple):
    """Distance to the reference, mean CLIPScore (or None), and the first images (SHOWN, 3, S, S), uint8."""

    distance: float
    clip_score: float | None
    shown: Tensor


def start_noise(shape: tuple[int, int, int], rows: Tensor, seed: int) -> Tensor:
    """Start noises (B, C, H, W) number `rows` (B,): each a function of its number and the seed alone.

    Two models of equal shape start from the same noises, in batches of any size, and more images add to fewer.
    """
    seeds = [derive_seed("start noise", seed, row) for row in rows.tolist()]
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number in seeds])


def draw(model: ImageModel, drawing: Drawing, conditions: Images) -> Iterator[tuple[Tensor, list[str] | None]]:
    """Draw images in batches (B, 3, S, S), uint8, each with its prompts, or None.

    Image i takes prompt and original from row i of the conditions, in turn where they are fewer.
    ValueError if the model has no such solver, cannot edit, or draws NaN.
    """
    solver = drawing.solver.choose(model)
    for numbers in torch.arange(drawing.n).split(drawing.batch_size):
        rows = numbers % len(conditions)
        prompts = conditions.prompts(rows)
        noise = start_noise(model.coder.shape, numbers, drawing.seed).to(drawing.device)
        generator = torch_generator(drawing.device, "sampling", drawing.seed, int(numbers[0]))
        if drawing.edit is None:
            images = model.sample(noise, solver, prompts=prompts, generator=generator).images
        else:
            originals = to_pixels(conditions.pixels(rows).to(drawing.device))
            if drawing.edit == "invert":
                images = redraw(model, originals, solver, prompts=prompts, generator=generator)
            else:
                region = edit_region(drawing.edit, originals.shape[-1])
                images = fill_in(model, originals, region, noise, solver, prompts=prompts, generator=generator)
        if not images.isfinite().all():
            raise ValueError("the model draws NaN or infinite pixels; its training diverged")
        yield to_bytes(images), prompts


def measure(
    model: ImageModel,
    drawing: Drawing,
    conditions: Images,
    extractor: Extractor,
    reference: FeatureStatistics,
    clip: ClipScore | None,
) -> Quality:
    """Draw images and compare them with the reference; ValueError as `draw`, or for CLIPScore without prompts."""
    if clip is not None:
        require_prompts(conditions)
    features: list[Tensor] = []
    scores: list[Tensor] = []
    shown: list[Tensor] = []
    for images, prompts in draw(model, drawing, conditions):
        features.append(extractor.features(images).float().cpu())
        if clip is not None and prompts is not None:
            scores.append(clip.scores(images, prompts))
        if sum(map(len, shown)) < SHOWN:
            shown.append(images.cpu())
    distance = frechet_distance(*feature_statistics(torch.cat(features)), *reference)
    return Quality(distance, float(torch.cat(scores).mean()) if scores else None, torch.cat(shown)[:SHOWN])


def make_reference(extractor: Extractor, images: Images, n: int, seed: int) -> Reference:
    """Features of all reference images, with the distances between which a model's will lie.

    Both ends are measured with n images, as a model's distance is: it depends on their number. The real ones are drawn
    from the reference and compared with what remains of it, so that no image is on both sides.
    ValueError if there are fewer images, or fewer drawn, than the covariance of D features needs, D + 1.
    """
    require_enough(extractor, images, n)
    rows = torch.arange(len(images))
    features = reference_features(extractor, images, rows)
    statistics, floor = feature_statistics(features), None
    if len(rows) - n > extractor.dims:
        shuffled = torch.randperm(len(rows), generator=torch_generator("cpu", "reference", seed))
        drawn, others = (feature_statistics(features[part]) for part in (shuffled[:n], shuffled[n:]))
        floor = frechet_distance(*drawn, *others)
    shape = (3, images.size, images.size)
    noise = (to_bytes(0.5 * start_noise(shape, part, seed)) for part in torch.arange(n).split(REFERENCE_BATCH))
    plain = frechet_distance(*feature_statistics(features_of(extractor, noise)), *statistics)
    return Reference(statistics, len(rows), floor, plain)


def reference_features(extractor: Extractor, images: Images, rows: Tensor) -> Tensor:
    """Features (N, D), float32 on the CPU, of rows (N,) of a set, whose pixels are read a few at a time."""
    return features_of(extractor, (images.pixels(part) for part in rows.split(REFERENCE_BATCH)))


def require_enough(extractor: Extractor, images: Images, n: int, option: str = "samples") -> None:
    """Refuse sets whose covariance of D features would be singular: ValueError below D + 1 images.

    `option` is the name under which the user gave `n`.
    """
    needed = extractor.dims + 1
    for name, count in ((option, n), ("reference images", len(images))):
        if count < needed:
            raise ValueError(f"{name}={count}: the {extractor.dims} features of {extractor.name} need {needed} or more")


def require_prompts(conditions: Images) -> None:
    """Refuse images without prompts, by ValueError."""
    if conditions.texts is None:
        raise ValueError("clip= needs prompts, and these images have none; see prompts=")
