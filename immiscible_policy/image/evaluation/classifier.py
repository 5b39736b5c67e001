"""A small CIFAR-10 classifier, trained here, whose features stand in where Inception's weights cannot be had.

A Fréchet distance on its features is called "classifier Fréchet distance", never FID: the two are not comparable.

The network is a ResNet (He et al., 2016) of three stages of one residual block, with batch normalisation; its features
are the last stage's channels, averaged over the image. One for 16x16 pixels is part of the package, so that distances
are comparable between users. Another, for 32x32 say, is trained by

  python -m immiscible_policy.image.evaluation.classifier data=cifar10.zip size=32 out=classifier_32.safetensors

which writes the weights, and beside them a JSON file with the network's sizes, its accuracy and how it was trained.

Shape legend: B images, S pixels along a side, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from immiscible_policy.cli import REQUIRED, CommandError, Option, one_line, parse, require_writable
from immiscible_policy.cli import run as run_command
from immiscible_policy.image.data import load_images, to_pixels
from immiscible_policy.provenance import command, versions, without_places
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.training.batches import ShuffledOrder
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.options import native_bf16
from immiscible_policy.training.state import TrainState

CLASSES = 10
BUNDLED = Path(__file__).with_name("classifier_16.safetensors")


@dataclass(frozen=True)
class ClassifierSpec:
    """Everything that shapes a classifier except its weights.

    Attributes:
        size: Side of the images that it was trained on, pixels.
        widths: Channels of the stages; the last are its features.
    """

    size: int = 16
    widths: tuple[int, ...] = (24, 48, 96)


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained; every value decides the result.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW; warm-up over the first tenth, then cosine to zero.
        weight_decay: Of AdamW.
        smoothing: Of the labels.
        seed: Of weights, order, flips and shifts.
        precision: Of the forward pass: fp32, or bf16 where the processor multiplies it natively.
    """

    epochs: int = 16
    batch_size: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    seed: int = 0
    precision: str = "fp32"


class Classifier(nn.Module):
    """A residual network for small images.

    Args:
        spec: Its sizes.
    """

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        first, *others = spec.widths
        stages = [_Block(first, first, stride=1)]
        stages += [_Block(before, after, stride=2) for before, after in zip(spec.widths, others, strict=False)]
        self.stem = nn.Sequential(_convolution(3, first), nn.BatchNorm2d(first), nn.ReLU())
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(spec.widths[-1], CLASSES)

    def features(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of pixels (B, 3, S, S) in [-1, 1]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        return self.stages(self.stem(pixels)).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 10) of pixels (B, 3, S, S) in [-1, 1]."""
        return self.head(self.features(pixels))


class _Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection, halving the resolution where stride is 2."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(before, after, stride), nn.BatchNorm2d(after), nn.ReLU())
        self.second = nn.Sequential(_convolution(after, after), nn.BatchNorm2d(after))
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


class Labelled(NamedTuple):
    """A training batch.

    Attributes:
        pixels: (B, 3, S, S) in [-1, 1].
        labels: Class numbers (B,).
    """

    pixels: Tensor
    labels: Tensor


class ClassifierObjective:
    """Cross entropy on images that are flipped and shifted at random; batches are functions of (seed, step).

    Args:
        model: What is trained.
        images: Training images (N, 3, S, S), uint8.
        labels: Class numbers (N,).
        training: How.
    """

    def __init__(self, model: Classifier, images: Tensor, labels: Tensor, training: ClassifierTraining) -> None:
        self.model, self.labels, self.training = model, labels, training
        self.margin = max(1, images.shape[-1] // 10)
        self.padded = nn.functional.pad(images, (self.margin,) * 4)
        self.order = ShuffledOrder(len(images), training.batch_size, training.seed)

    def batches(self, step: int) -> list[Labelled]:
        """The batch of a training step."""
        rows = self.order.rows(step)
        generator = torch_generator("cpu", "augmentation", self.training.seed, step)
        shifts = torch.randint(2 * self.margin + 1, (2, len(rows), 1), generator=generator)
        mirrored = torch.rand(len(rows), 1, generator=generator) < 0.5
        side = torch.arange(self.padded.shape[-1] - 2 * self.margin)
        down, across = shifts + side  # (B, S) each
        across = torch.where(mirrored, across.flip(-1), across)
        cut = self.padded[rows[:, None, None], :, down[:, :, None], across[:, None, :]]  # (B, S, S, 3)
        return [Labelled(to_pixels(cut.permute(0, 3, 1, 2)), self.labels[rows])]

    def loss(self, batch: Labelled) -> Tensor:
        """Cross entropy with smoothed labels, a scalar."""
        logits = self.model(batch.pixels).float()
        return nn.functional.cross_entropy(logits, batch.labels, label_smoothing=self.training.smoothing)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    spec: ClassifierSpec,
    training: ClassifierTraining,
    record: Callable[[dict[str, Any]], None],
) -> Classifier:
    """Train a classifier with the project's loop; a function of its arguments.

    The learning rate ends at zero, so the last weights are taken, without an average over steps.

    Args:
        images: Training images (N, 3, S, S), uint8.
        labels: Class numbers (N,), int64.
        spec: Sizes of the network.
        training: How.
        record: Receives a row of metrics every epoch.

    Returns:
        The classifier, in evaluation mode.
    """
    torch.manual_seed(derive_seed("weights", training.seed))  # torch's initialisers draw from the global stream alone
    per_epoch = max(1, len(images) // training.batch_size)
    steps = training.epochs * per_epoch
    state = TrainState(
        Classifier(spec),
        lr=training.lr,
        betas=(0.9, 0.999),
        weight_decay=training.weight_decay,
        warmup_steps=steps // 10,
        steps=steps,
        ema_power=0.75,
        ema_max=0.0,
    )
    model = state.model
    assert isinstance(model, Classifier)
    train(
        state,
        ClassifierObjective(model, images, labels, training),
        Cadence(steps, log_every=per_epoch, eval_every=steps, checkpoint_every=steps),
        precision=training.precision,
        record=record,
        evaluate=lambda state: {},
        save=lambda state: None,
    )
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, 3, S, S), uint8, whose class (N,) a classifier names."""
    named = [model(to_pixels(part)).argmax(dim=1) for part in images.split(500)]
    return float((torch.cat(named) == labels).float().mean())


def save_classifier(path: Path, model: Classifier, about: dict[str, Any]) -> str:
    """Write a classifier's weights, and beside them a JSON file with its sizes and what is known of it.

    Args:
        path: The file of weights, NAME.safetensors.
        model: The classifier.
        about: JSON values to keep with it.

    Returns:
        The weights' SHA-256.
    """
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    digest = hashlib.sha256(content).hexdigest()
    record = {"classifier": asdict(model.spec), "sha256": digest, **about}
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    return digest


def load_classifier(path: Path) -> tuple[Classifier, str]:
    """Read what `save_classifier` wrote.

    Returns:
        The classifier in evaluation mode, and its weights' SHA-256.

    Raises:
        ValueError: If a file is missing or damaged, or the two do not belong together.
    """
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise ValueError(f"classifier={path}: {file} is missing; {__name__} trains a classifier")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        record = json.loads(beside.read_text())
        expected, sizes = record["sha256"], record["classifier"]
        spec = ClassifierSpec(sizes["size"], tuple(sizes["widths"]))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{beside} describes no classifier ({one_line(error)}); train it again") from None
    if digest != expected:
        raise ValueError(f"{path} is not the file that {beside} describes (its hash differs); train it again")
    model = Classifier(spec)
    model.load_state_dict(safetensors.torch.load(content))
    return model.eval(), digest


USAGE = """\
usage: python -m immiscible_policy.image.evaluation.classifier data=PATH out=FILE.safetensors [KEY=VALUE ...]

Train the small CIFAR-10 classifier whose features a classifier Fréchet distance compares. The one for 16x16 pixels is
part of the package; `python eval_image.py ... classifier=FILE.safetensors` uses another.

  python -m immiscible_policy.image.evaluation.classifier data=cifar10.zip size=32 out=classifier_32.safetensors
"""
OPTIONS = {
    "data": Option(
        Path, REQUIRED, "CIFAR-10 with its classes: an image folder, a zip of one, or torchvision's directory"
    ),
    "out": Option(Path, REQUIRED, "the file of weights to write; NAME.json goes beside NAME.safetensors"),
    "size": Option(int, 16, "side that the images are averaged to"),
    "epochs": Option(int, ClassifierTraining.epochs, "passes over the training images"),
    "seed": Option(int, 0, "of weights, order and augmentation"),
}


class LabelledImages(NamedTuple):
    """A split of CIFAR-10.

    Attributes:
        images: (N, 3, S, S), uint8.
        labels: Numbers (N,) of their classes in the order of the alphabet.
        content_hash: Of images and classes.
    """

    images: Tensor
    labels: Tensor
    content_hash: str


def read_labelled(data: Path, split: str, size: int) -> LabelledImages:
    """Read a split of CIFAR-10 with its classes.

    Raises:
        ValueError: If it cannot be read, or has not ten classes.
    """
    found = load_images("cifar10", data, split=split, size=size)
    rows = torch.arange(len(found))
    named = found.prompts(rows) or []
    classes = {name: number for number, name in enumerate(sorted(set(named)))}
    if len(classes) != CLASSES:
        raise ValueError(f"data={data}: {split} has {len(classes)} classes; CIFAR-10 has {CLASSES}")
    return LabelledImages(found.pixels(rows), torch.tensor([classes[name] for name in named]), found.content_hash)


def main() -> None:
    """Console entry point."""
    run_command(_main)


def _main(words: list[str]) -> None:
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
    model = train_classifier(learnt.images, learnt.labels, ClassifierSpec(options["size"]), training, _show)
    score = accuracy(model, unseen.images, unseen.labels)
    about = {
        "test_accuracy": score,
        "training": asdict(training),
        "data": {"dataset": "cifar10", "split": "train", "content_hash": learnt.content_hash},
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
