"""Every checkpoint of a run measured once: rows beside its seed's results, samples as pictures."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.cli import CommandError
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import DATASETS, Images, load_images
from immiscible_policy.image.data.images import NONE, OWN, prompts_for
from immiscible_policy.image.evaluation.clip import ClipScore, real_scores
from immiscible_policy.image.evaluation.features import Extractor
from immiscible_policy.image.evaluation.measure import (
    Drawing,
    Reference,
    draw,
    make_reference,
    measure,
    require_enough,
    require_prompts,
)
from immiscible_policy.image.evaluation.pictures import save_tiles
from immiscible_policy.image.evaluation.rows import ROWS, ImageRow, read_image_rows, write_image_rows
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.spec import PROMPTED, read_spec
from immiscible_policy.store.checkpoint import Checkpoint, read_checkpoint
from immiscible_policy.store.run import RunDirectory, SeedDirectory, run_of

HASH = 16  # Digits of a SHA-256 that rows keep


@dataclass(frozen=True)
class ImageProtocol:
    """How images are drawn and what they are compared with, the same for every run.

    Where data, dataset, prompts or pretrained are None they are those of the run's training.
    """

    drawing: Drawing
    extractor: Extractor
    clip: ClipScore | None = None
    split: str = "train"  # part of the data set that is the reference
    limit: int | None = None  # only the first so many images of it
    originals: str | None = None  # split that is edited; None for the data set's last, which training leaves out
    data: Path | None = None
    dataset: str | None = None
    prompts: str | None = None
    pretrained: str | None = None


class ImageSource(NamedTuple):
    """Where the images of a run come from: name and path of a data set, side of its images, source of prompts.

    A file of prompts that the run itself was trained with is for the first `limit` images of training.
    """

    dataset: str
    data: str
    size: int
    prompts: str
    own_prompts: bool = False
    limit: int | None = None


class Target(NamedTuple):
    """What is measured: a run (None for a checkpoint outside of one), its checkpoints seed by seed, oldest first."""

    label: str
    run: RunDirectory | None
    checkpoints: list[Checkpoint]
    source: ImageSource


class Evaluation:
    """Measures runs by one protocol, reading what they share once; `report` receives a line on each checkpoint."""

    def __init__(self, protocol: ImageProtocol, report: Callable[[str], None]) -> None:
        self.protocol, self.report = protocol, report
        self._load = cache(load_images)
        self.reference = cache(self._reference)  # what distances of a source's images mean, measured

    def with_calls(self, count: int) -> Evaluation:
        """The same with `count` network calls; without a spacing on the trailing grid. What was read is shared."""
        other, drawing = copy(self), self.protocol.drawing
        solver = drawing.solver._replace(steps=count, spacing=drawing.solver.spacing or "trailing")
        other.protocol = replace(self.protocol, drawing=replace(drawing, solver=solver))
        return other

    def check(self, target: Target) -> None:
        """Raise the ValueErrors of `rows` before minutes of work; draws one image from the first checkpoint."""
        require_enough(self.protocol.extractor, self._images(target.source), self.protocol.drawing.n)
        if self.protocol.clip is not None:
            require_prompts(self.conditions(target.source))
        self._draw(target, target.checkpoints[0], 1)

    def rows(self, target: Target) -> list[ImageRow]:
        """Measure what is not measured yet; all rows of this protocol, also of checkpoints that are gone."""
        rows = [self.row(target, checkpoint) for checkpoint in target.checkpoints]
        if target.run is None:
            return rows
        files = [target.run.seed(number).path / ROWS for number in target.run.seeds()]
        return [row for file in files for row in read_image_rows(file) if row.setting == rows[0].setting]

    def _reference(self, source: ImageSource) -> Reference:
        drawing, clip = self.protocol.drawing, self.protocol.clip
        reference = make_reference(self.protocol.extractor, self._images(source), drawing.n, drawing.seed)
        if clip is None:
            return reference
        return reference._replace(clip=real_scores(clip, self.conditions(source), drawing.n, drawing.batch_size))

    def first_images(self, target: Target, n: int) -> Tensor:
        """The first n images (n, 3, S, S), uint8, that the last checkpoint of the first seed draws or edits."""
        first = target.checkpoints[0].path.parent
        return self._draw(target, [kept for kept in target.checkpoints if kept.path.parent == first][-1], n)

    def conditions(self, source: ImageSource) -> Images:
        """Originals and prompts of what is drawn."""
        edited = self.protocol.drawing.edit is not None
        if source.own_prompts and not edited:
            trained = self._load(source.dataset, source.data, split="train", size=source.size, limit=source.limit)
            return prompts_for(trained, source.prompts)
        return prompts_for(self._images(source, edited), source.prompts)

    def _draw(self, target: Target, checkpoint: Checkpoint, n: int) -> Tensor:
        """The first n images (n, 3, S, S), uint8, that a checkpoint draws."""
        drawing = replace(self._drawing(checkpoint), n=n)
        drawn = draw(self._model(checkpoint), drawing, self.conditions(target.source))
        return torch.cat([images.cpu() for images, _ in drawn])

    def row(self, target: Target, checkpoint: Checkpoint) -> ImageRow:
        """The row of a checkpoint: read where it is there, otherwise measured and written."""
        protocol, blank, seed = self.protocol, self._blank(target.source, checkpoint), run_of(checkpoint.path)
        known = [] if seed is None else read_image_rows(seed.path / ROWS)
        name = f"{target.label}: seed {blank.seed}, step {blank.checkpoint}, sampling_steps={blank.sampling_steps}"
        for row in known:
            if row.unmeasured == blank:
                self.report(f"{name}: {row.distance:.3f}, measured before")
                return row
        conditions, reference = self.conditions(target.source), self.reference(target.source).statistics
        quality = measure(
            self._model(checkpoint), self._drawing(checkpoint), conditions, protocol.extractor, reference, protocol.clip
        )
        row = replace(blank, distance=quality.distance, clip_score=quality.clip_score)
        self.report(f"{name}: {row.distance:.3f}")
        if seed is not None:
            write_image_rows(seed.path / ROWS, [*known, row])
            picture = f"{protocol.drawing.edit or 'measured'}_{checkpoint.path.name}.png"
            save_tiles(seed.path / "samples" / picture, quality.shown)
        return row

    def _model(self, checkpoint: Checkpoint) -> ImageModel:
        """A checkpoint's model on its device."""
        return load_image_model(checkpoint, pretrained=self.protocol.pretrained)[0].to(self.protocol.drawing.device)

    def _drawing(self, checkpoint: Checkpoint) -> Drawing:
        """How a checkpoint draws: as its training did, but for what the protocol says."""
        own = self.protocol.drawing
        return replace(own, solver=own.solver.filled(checkpoint.config))

    def _blank(self, source: ImageSource, checkpoint: Checkpoint) -> ImageRow:
        """The row of a checkpoint before it is measured."""
        protocol, drawing, images = self.protocol, self._drawing(checkpoint), self._images(source)
        prompts, clip = source.prompts, NONE
        if prompts not in (OWN, NONE):
            prompts = f"{Path(prompts).name} (content {self.conditions(source).content_hash[:HASH]})"
        if protocol.clip is not None:
            clip = f"{Path(protocol.clip.source).name} (weights {protocol.clip.weights[:HASH]})"
        return ImageRow(
            checkpoint=checkpoint.step,
            seed=checkpoint.metadata.get("seed", 0),
            distance=0.0,
            clip_score=None,
            n=drawing.n,
            features=protocol.extractor.name,
            weights=protocol.extractor.weights[:HASH],
            dims=protocol.extractor.dims,
            resize=protocol.extractor.resize,
            reference=source.dataset,
            split=protocol.split,
            reference_hash=images.content_hash[:HASH],
            reference_n=len(images),
            size=source.size,
            sampling_steps=drawing.solver.words,
            noise_seed=drawing.seed,
            edit=drawing.edit or NONE,
            originals=self._originals(source) if drawing.edit else NONE,
            prompts=prompts,
            clip=clip,
        )

    def _originals(self, source: ImageSource) -> str:
        return self.protocol.originals or DATASETS[source.dataset].splits[-1]

    def _images(self, source: ImageSource, edited: bool = False) -> Images:
        """The reference, or what is edited."""
        split, limit = (self._originals(source), None) if edited else (self.protocol.split, self.protocol.limit)
        return self._load(source.dataset, source.data, split=split, size=source.size, limit=limit)


def find_run(label: str, run: RunDirectory, protocol: ImageProtocol) -> Target:
    """All kept checkpoints of a run; CommandError if it has none, or nothing says where its data lie."""
    run.config  # noqa: B018  # refuses what is not a run
    kept = [checkpoint for checkpoints in run.checkpoints().values() for checkpoint in checkpoints]
    if not kept:
        raise CommandError(f"{run.path} has no checkpoint; train it first")
    return Target(label, run, kept, _source(label, run, kept[0], protocol))


def find_target(path: Path, protocol: ImageProtocol) -> Target:
    """A single checkpoint, with any run around it; CommandError if nothing says where its data lie."""
    checkpoint, seed = read_checkpoint(path), run_of(path)
    run = seed.run if isinstance(seed, SeedDirectory) else None
    label = path.absolute().name if run is None else run.name
    return Target(label, run, [checkpoint], _source(str(path), run, checkpoint, protocol))


def _source(name: str, run: RunDirectory | None, checkpoint: Checkpoint, protocol: ImageProtocol) -> ImageSource:
    """Where images come from: the protocol's, else the run's own options; CommandError for prompts without effect."""
    spec = read_spec(checkpoint)
    if protocol.prompts not in (None, NONE) and spec.model not in PROMPTED:
        raise CommandError(f"prompts={protocol.prompts}: {name} is of model={spec.model} and has none; leave it out")
    config = {} if run is None else run.config
    data = protocol.data or config.get("data")
    if data is None:
        raise CommandError(f"{name} does not say where its data lie; give data=PATH, and dataset= if not cifar10")
    prompts = protocol.prompts or (config.get("prompts", NONE) if spec.model in PROMPTED else NONE)
    dataset, trained = protocol.dataset or config.get("dataset") or "cifar10", config.get("limit")
    own = protocol.prompts is None and prompts not in (OWN, NONE)
    return ImageSource(dataset, str(data), spec.size, prompts, own, trained if own else None)
