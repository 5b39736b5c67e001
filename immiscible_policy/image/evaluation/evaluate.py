"""Every checkpoint of a run measured once: rows in `seed_N/frechet.csv`, samples as pictures beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.cli import CommandError
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import Images, load_images
from immiscible_policy.image.evaluation.clip import ClipScore
from immiscible_policy.image.evaluation.features import Extractor
from immiscible_policy.image.evaluation.measure import (
    Drawing,
    Quality,
    Reference,
    draw,
    make_reference,
    measure,
    require_enough,
    require_prompts,
)
from immiscible_policy.image.evaluation.pictures import save_tiles
from immiscible_policy.image.evaluation.rows import ImageRow, read_image_rows, write_image_rows
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.prompts import prompts_for
from immiscible_policy.image.spec import ImageSpec, read_spec
from immiscible_policy.store.checkpoint import Checkpoint, read_checkpoint
from immiscible_policy.store.run import RunDirectory, run_of

ROWS = "frechet.csv"
BEST, NONE = "best", "none"
HASH = 16
"""Digits of a SHA-256 that rows keep."""


@dataclass(frozen=True)
class Plan:
    """How images are drawn and what they are compared with, the same for every run.

    Attributes:
        extractor: Its features are compared.
        clip: For CLIPScore, or None.
        n: Images per checkpoint.
        steps: Sampling steps; None for the model's own best.
        seed: Names the start noises.
        batch_size: Images at a time.
        device: Of the models.
        split: Part of the data set that is the reference.
        limit: Only the first so many reference images; None for all.
        edit: `inpaint`, `outpaint` or None.
        originals: Part of the data set that is edited.
        data: Path of the data set; None for what the run was trained on.
        dataset: Its name; None likewise.
        prompts: Source of prompts; None likewise.
        pretrained: Where the ready-made parts of Stable Diffusion lie; None for where they lay in training.
    """

    extractor: Extractor
    clip: ClipScore | None
    n: int
    steps: int | None
    seed: int
    batch_size: int
    device: str
    split: str
    limit: int | None
    edit: str | None
    originals: str
    data: Path | None
    dataset: str | None
    prompts: str | None
    pretrained: str | None


class Source(NamedTuple):
    """Where the images of a run come from.

    Attributes:
        dataset: A name that `load_images` knows.
        data: Its path.
        size: Side of the images.
        prompts: Source of prompts, as `prompts_for` takes it.
    """

    dataset: str
    data: str
    size: int
    prompts: str


class Target(NamedTuple):
    """What is measured.

    Attributes:
        label: How it is named.
        directory: The run, or None for a checkpoint outside of one.
        checkpoints: Seed by seed, oldest first.
        source: Where its images come from.
    """

    label: str
    directory: Path | None
    checkpoints: list[Checkpoint]
    source: Source


@dataclass
class Evaluation:
    """Measures runs by one plan; what they have in common is read and computed once.

    Args:
        plan: How.
        tell: Receives a line about what happens.
    """

    plan: Plan
    tell: Callable[[str], None]
    _images: dict[tuple[Source, str, int | None], Images] = field(default_factory=dict)
    _references: dict[Source, Reference] = field(default_factory=dict)

    def check(self, target: Target) -> None:
        """Find out what `rows` would find out after minutes; draws one image from the run's first checkpoint.

        Raises:
            ValueError: If data are unusable, there are too few images for the features, or the model cannot draw.
        """
        require_enough(self.plan.extractor, self._reference_images(target.source), self.plan.n)
        if self.plan.clip is not None:
            require_prompts(self.conditions(target.source))
        self._images_of(target, target.checkpoints[0], 1)

    def rows(self, target: Target) -> list[ImageRow]:
        """Measure what is not measured yet; all rows of this plan, also of checkpoints that are gone.

        Raises:
            ValueError: As `check`, or if a checkpoint is damaged.
        """
        rows = [self._row(target, checkpoint) for checkpoint in target.checkpoints]
        if target.directory is None:
            return rows
        run = RunDirectory(target.directory)
        stored = [row for seed in run.seeds() for row in read_image_rows(run.seed(seed).path / ROWS)]
        return [row for row in stored if row.setting == rows[0].setting]

    def reference(self, target: Target) -> Reference:
        """The reference of a run, measured.

        Raises:
            ValueError: As `rows`.
        """
        source = target.source
        if source not in self._references:
            images = self._reference_images(source)
            self._references[source] = make_reference(self.plan.extractor, images, self.plan.n, self.plan.seed)
        return self._references[source]

    def first_images(self, target: Target, n: int) -> Tensor:
        """The first n images (n, 3, S, S), uint8, that the last checkpoint of the first seed draws or edits."""
        of_first = [each for each in target.checkpoints if each.path.parent == target.checkpoints[0].path.parent]
        return self._images_of(target, of_first[-1], n)

    def conditions(self, source: Source) -> Images:
        """Originals and prompts of what is drawn."""
        plan = self.plan
        images = self._load(source, plan.originals) if plan.edit else self._reference_images(source)
        return prompts_for(images, source.prompts)

    def _images_of(self, target: Target, checkpoint: Checkpoint, n: int) -> Tensor:
        """The first n images (n, 3, S, S), uint8, that a checkpoint draws."""
        drawing = self._drawing(target, n)
        return torch.cat([drawn.images.cpu() for drawn in draw(self._model(checkpoint), drawing)])

    def _row(self, target: Target, checkpoint: Checkpoint) -> ImageRow:
        """The row of a checkpoint: read where it is there, otherwise measured and written."""
        asked, path = self._asked(target.source, checkpoint), checkpoint.path.parents[1] / ROWS
        known = [] if target.directory is None else read_image_rows(path)
        name = f"{target.label}: seed {asked.seed}, step {asked.checkpoint}"
        for row in known:
            if row.asked == asked:
                self.tell(f"{name}: {row.distance:.3f}, measured before")
                return row
        quality = self._measure(target, checkpoint)
        row = replace(asked, distance=quality.distance, clip_score=quality.clip_score)
        self.tell(f"{name}: {row.distance:.3f}")
        if target.directory is not None:
            write_image_rows(path, [*known, row])
            picture = f"{self.plan.edit or 'measured'}_{checkpoint.path.name}.png"
            save_tiles(path.parent / "samples" / picture, quality.shown)
        return row

    def _measure(self, target: Target, checkpoint: Checkpoint) -> Quality:
        plan, statistics = self.plan, self.reference(target).statistics
        drawing = self._drawing(target, plan.n)
        return measure(self._model(checkpoint), drawing, plan.extractor, statistics, plan.clip)

    def _model(self, checkpoint: Checkpoint) -> ImageModel:
        """A checkpoint's model on its device."""
        model, _ = load_image_model(checkpoint, pretrained=self.plan.pretrained)
        return model.to(self.plan.device)

    def _asked(self, source: Source, checkpoint: Checkpoint) -> ImageRow:
        """The row of a checkpoint before it is measured."""
        plan, images = self.plan, self._reference_images(source)
        return ImageRow(
            checkpoint=checkpoint.step,
            seed=checkpoint.metadata.get("seed", 0),
            distance=0.0,
            clip_score=None,
            n=plan.n,
            features=plan.extractor.name,
            weights=plan.extractor.weights[:HASH],
            dims=plan.extractor.dims,
            resize=plan.extractor.resize,
            reference=source.dataset,
            split=plan.split,
            reference_hash=images.content_hash[:HASH],
            reference_n=len(images),
            size=source.size,
            sampling_steps=BEST if plan.steps is None else str(plan.steps),
            noise_seed=plan.seed,
            edit=plan.edit or NONE,
            originals=plan.originals if plan.edit else NONE,
            prompts=without_places(source.prompts),
            clip=NONE if plan.clip is None else without_places(plan.clip.source),
        )

    def _drawing(self, target: Target, n: int) -> Drawing:
        plan = self.plan
        return Drawing(
            n,
            (None, plan.steps, "trailing", 0.0),
            plan.seed,
            plan.batch_size,
            plan.device,
            plan.edit,
            self.conditions(target.source),
        )

    def _reference_images(self, source: Source) -> Images:
        return self._load(source, self.plan.split, self.plan.limit)

    def _load(self, source: Source, split: str, limit: int | None = None) -> Images:
        key = (source, split, limit)
        if key not in self._images:
            found = load_images(source.dataset, source.data, split=split, size=source.size, limit=limit)
            self._images[key] = found
        return self._images[key]


def find_run(label: str, directory: Path, plan: Plan) -> Target:
    """All kept checkpoints of a run.

    Raises:
        CommandError: If it is no run, keeps none, or nothing says where its data lie.
        CheckpointError: If its first checkpoint is of no image model.
    """
    run = RunDirectory(directory)
    run.config  # noqa: B018  # refuses what is no run
    kept = [checkpoint for of_seed in run.checkpoints().values() for checkpoint in of_seed]
    if not kept:
        raise CommandError(f"{directory} keeps no checkpoint (seed_N/checkpoints/step_XXXXXX); train it first")
    return Target(label, directory, kept, _source(label, directory, kept[0], plan))


def find_checkpoint(path: Path, plan: Plan) -> Target:
    """A single checkpoint, with the run that it lies in, if any.

    Raises:
        CommandError: If nothing says where its data lie.
        CheckpointError: If it is missing, damaged, or of no image model.
    """
    checkpoint = read_checkpoint(path)
    seed = run_of(path)
    directory = None if seed is None else seed.run.path
    label = path.absolute().name if directory is None else directory.name
    return Target(label, directory, [checkpoint], _source(str(path), directory, checkpoint, plan))


def _source(name: str, directory: Path | None, checkpoint: Checkpoint, plan: Plan) -> Source:
    """Where images come from: the plan's word, else the run's own configuration; only Stable Diffusion has prompts."""
    spec = read_spec(checkpoint)
    config = {} if directory is None else RunDirectory(directory).config
    data = plan.data or config.get("data")
    if data is None:
        raise CommandError(f"{name} does not say where its data lie; give data=PATH, and dataset= if not cifar10")
    prompts = plan.prompts or (NONE if isinstance(spec, ImageSpec) else config.get("prompts", NONE))
    return Source(plan.dataset or config.get("dataset") or "cifar10", str(data), spec.size, prompts)


def without_places(source: str) -> str:
    """A file or directory by its name alone, wherever it lies; anything else as it is."""
    return Path(source).name if Path(source).exists() else source
