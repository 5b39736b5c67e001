"""A small CIFAR-10 classifier whose features stand in where Inception's weights cannot be had.

A Fréchet distance on its features is called "classifier Fréchet distance", never FID: the two are not comparable.

The network is a ResNet (He et al., 2016) of three stages of one residual block, with batch normalisation; its features
are the last stage's channels, averaged over the image. One for 16x16 pixels is part of the package, so that distances
are comparable between users; `commands.train_classifier` trains others.

Shape legend: B images, S pixels along a side, D features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from immiscible_policy.cli import one_line

CLASSES = 10
BUNDLED = Path(__file__).with_name("classifier_16.safetensors")


@dataclass(frozen=True)
class ClassifierSpec:
    """What shapes a classifier except its weights: side of its images [px]; the last of its widths is its features."""

    size: int = 16
    widths: tuple[int, ...] = (24, 48, 96)


class Classifier(nn.Module):
    """A residual network for small images."""

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


def load_classifier(path: Path) -> tuple[Classifier, str]:
    """What `save_classifier` wrote, in evaluation mode, and its weights' SHA-256; ValueError for damaged files."""
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            trained = "python -m immiscible_policy.commands.train_classifier trains one"
            raise ValueError(f"classifier={path}: {file} is missing; {trained}")
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
