"""Training the small CIFAR-10 classifier of `image.evaluation.classifier` with the project's loop.

Shape legend: B images, S pixels along a side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.evaluation.classifier import Classifier, ClassifierSpec
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.training.batches import ShuffledOrder
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.state import TrainState


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained; every value decides the result.

    Attributes:
        lr: Peak learning rate of AdamW; warm-up over the first tenth, then cosine to zero.
        seed: Seed of weights, order, flips and shifts.
        precision: Precision of the forward pass: fp32, or bf16 where the processor multiplies it natively.
    """

    epochs: int = 16
    batch_size: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    seed: int = 0
    precision: str = "fp32"


class ClassifierObjective:
    """Cross entropy on images (N, 3, S, S), uint8, of classes (N,), that are flipped and shifted at random.

    Batches are functions of (seed, step).
    """

    def __init__(self, model: Classifier, images: Tensor, labels: Tensor, training: ClassifierTraining) -> None:
        self.model, self.labels, self.training = model, labels, training
        self.margin = max(1, images.shape[-1] // 10)
        self.padded = nn.functional.pad(images, (self.margin,) * 4)
        self.order = ShuffledOrder(len(images), training.batch_size, training.seed)

    def batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The batch of a training step: pixels (B, 3, S, S) in [-1, 1] and class numbers (B,)."""
        rows = self.order.rows(step)
        generator = torch_generator("cpu", "augmentation", self.training.seed, step)
        shifts = torch.randint(2 * self.margin + 1, (2, len(rows), 1), generator=generator)
        mirrored = torch.rand(len(rows), 1, generator=generator) < 0.5
        side = torch.arange(self.padded.shape[-1] - 2 * self.margin)
        down, across = shifts + side  # (B, S) each
        across = torch.where(mirrored, across.flip(-1), across)
        cut = self.padded[rows[:, None, None], :, down[:, :, None], across[:, None, :]]  # (B, S, S, 3)
        return [(to_pixels(cut.permute(0, 3, 1, 2)), self.labels[rows])]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy with smoothed labels, a scalar."""
        pixels, labels = batch
        return nn.functional.cross_entropy(self.model(pixels).float(), labels, label_smoothing=self.training.smoothing)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    spec: ClassifierSpec,
    training: ClassifierTraining,
    record: Callable[[dict[str, Any]], None],
) -> Classifier:
    """Train a classifier on images (N, 3, S, S), uint8, of classes (N,), int64; returned in evaluation mode.

    A function of its arguments; `record` receives a row of metrics every epoch. The learning rate ends at zero, so the
    last weights are taken, without an average over steps.
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
    """Write NAME.safetensors, and NAME.json with its sizes and what is known `about` it; the weights' SHA-256."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    digest = hashlib.sha256(content).hexdigest()
    record = {"classifier": asdict(model.spec), "sha256": digest, **about}
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    return digest
