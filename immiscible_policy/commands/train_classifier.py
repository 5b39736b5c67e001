"""`python -m immiscible_policy.commands.train_classifier`: the features that a classifier Fréchet distance compares."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.cli import COUNT, REQUIRED, SEED, CommandError, Option, parse, program, require_writable, whole
from immiscible_policy.image.data import load_images
from immiscible_policy.image.evaluation.classifier import CLASSES, ClassifierSpec
from immiscible_policy.provenance import command, native_bf16, versions, without_places
from immiscible_policy.recipes.classifier import ClassifierTraining, accuracy, save_classifier, train_classifier

USAGE = """\
usage: python -m immiscible_policy.commands.train_classifier data=PATH out=FILE.safetensors [KEY=VALUE ...]

Train the small CIFAR-10 classifier whose features a classifier Fréchet distance compares. The one for 16x16 pixels is
part of the package; `python eval_image.py ... classifier=FILE.safetensors` uses another.

  python -m immiscible_policy.commands.train_classifier data=cifar10.zip size=32 out=classifier_32.safetensors
"""
OPTIONS = {
    "data": Option(
        Path, REQUIRED, "CIFAR-10 with its classes: an image folder, a zip of one, or torchvision's directory"
    ),
    "out": Option(Path, REQUIRED, "the file of weights to write; NAME.json goes beside NAME.safetensors"),
    "size": Option(whole(1, 1024), 16, "side of the images in pixels, averaged"),
    "epochs": Option(COUNT, ClassifierTraining.epochs, "passes over the training images"),
    "seed": Option(SEED, 0, "seed of weights, order and augmentation"),
}


def read_labelled(data: Path, split: str, size: int) -> tuple[Tensor, Tensor, str]:
    """Images (N, 3, S, S), uint8, classes (N,) and hash of a split of CIFAR-10; ValueError unless ten classes."""
    images = load_images("cifar10", data, split=split, size=size)
    rows = torch.arange(len(images))
    named = images.prompts(rows) or []
    classes = {name: number for number, name in enumerate(sorted(set(named)))}
    if len(classes) != CLASSES:
        raise ValueError(f"data={data}: {split} has {len(classes)} classes; CIFAR-10 has {CLASSES}")
    return images.pixels(rows), torch.tensor([classes[name] for name in named]), images.content_hash


@program
def main(words: list[str]) -> None:
    """Train, test and save the classifier."""
    options = parse(words, OPTIONS, USAGE)
    out: Path = options["out"]
    if out.suffix != ".safetensors":
        raise CommandError(f"out={out}: a classifier's name must end in .safetensors")
    require_writable("out", out)
    training = ClassifierTraining(
        epochs=options["epochs"], seed=options["seed"], precision="bf16" if native_bf16("cpu") else "fp32"
    )
    learnt, unseen = (read_labelled(options["data"], split, options["size"]) for split in ("train", "test"))
    torch.set_num_threads(1)  # the weights' bits depend on it
    model = train_classifier(*learnt[:2], ClassifierSpec(options["size"]), training, _show)
    score = accuracy(model, *unseen[:2])
    about = {
        "test_accuracy": score,
        "training": asdict(training),
        "data": {"dataset": "cifar10", "split": "train", "content_hash": learnt[2]},
        "command": without_places(command()),
        "versions": versions(),
    }
    digest = save_classifier(out, model, about)
    print(f"test accuracy {score:.1%}; saved {out} (sha256 {digest[:12]}) and {out.with_suffix('.json')}")


def _show(row: dict[str, Any]) -> None:
    if "loss" in row:
        print(f"step {row['step']}: loss {row['loss']:.3f} ({row['rate']:.1f} steps/s)", flush=True)


if __name__ == "__main__":
    main()
