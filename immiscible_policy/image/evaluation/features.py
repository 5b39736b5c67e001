"""What a Fréchet distance compares: features of images, by one of two extractors behind one small interface.

    classifier    the last stage of the project's own CIFAR-10 ResNet, part of the package
    inception     the last pooling layer of InceptionV3 as torch-fidelity has it, whose distance is FID

Shape legend: B images, S pixels along a side, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from immiscible_policy.cli import one_line, unknown
from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.evaluation.classifier import BUNDLED, load_classifier

EXTRACTORS = ("classifier", "inception")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_HASH = "6726825d"  # How the SHA-256 of the published weights begins


class Extractor(Protocol):
    """Turns images into features."""

    name: str
    title: str  # what a distance of its features is called
    dims: int  # D
    resize: str  # how images come to the size that it wants
    weights: str  # SHA-256 of its network's weights

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D), float32, of images (B, 3, S, S), uint8."""


class ClassifierFeatures:
    """Features of the CIFAR-10 classifier, of images averaged to its size; ValueError if its weights are damaged."""

    name = "classifier"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.model, self.weights = load_classifier(path)
        self.model.to(device)
        self.device, self.size, self.dims = device, self.model.spec.size, self.model.spec.widths[-1]
        self.title = f"classifier Fréchet distance (CIFAR-10 ResNet, {self.dims} dims)"
        self.resize = f"area average to {self.size}x{self.size}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, S, S), uint8."""
        pixels = to_pixels(images.to(self.device))
        return self.model.features(torch.nn.functional.interpolate(pixels, size=self.size, mode="area"))


class InceptionFeatures:
    """The 2,048 features that FID is defined on (Heusel et al., 2017); ValueError if parts are missing.

    The file of weights, by default where torch keeps torch-fidelity's download, is read as plain tensors before
    torch-fidelity, which would execute what is in it, may see it.
    """

    name = "inception"
    dims = 2048
    resize = "bilinear to 299x299, as TensorFlow 1 has it"

    def __init__(self, path: Path | None = None, device: str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
            raise ValueError(
                f"features=inception needs torch-fidelity and the torchvision built for torch {torch.__version__} "
                f"({one_line(error)}): pip install torch-fidelity torchvision, or use features=classifier"
            ) from None
        path = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if not path.is_file():
            raise ValueError(f"inception={path} is missing; download {INCEPTION_URL}, or use inception=PATH")
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises whatever the bytes lead to
            what = type(error).__name__
            raise ValueError(f"inception={path} is not a file of weights ({what}); download it again") from None
        with open(path, "rb") as file:
            self.weights = hashlib.file_digest(file, "sha256").hexdigest()
        self.title = "FID" if self.weights.startswith(INCEPTION_HASH) else "Fréchet distance (Inception, other weights)"
        self.device = device
        try:
            self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
        except RuntimeError:
            raise ValueError(f"inception={path} has no weights of torch-fidelity's InceptionV3") from None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, 3, S, S), uint8."""
        return self.model(images.to(self.device))[0]


def make_extractor(
    name: str, *, classifier: Path | None = None, inception: Path | None = None, device: str = "cpu"
) -> Extractor:
    """An extractor by name, with its usual weights where no path is given; ValueError if it cannot be had."""
    if name == "classifier":
        return ClassifierFeatures(classifier or BUNDLED, device)
    if name == "inception":
        return InceptionFeatures(inception, device)
    raise ValueError(unknown("features", name, EXTRACTORS))


def features_of(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, D), float32 on the CPU, of images that come in batches (B, 3, S, S), uint8."""
    return torch.cat([extractor.features(batch).float().cpu() for batch in batches])
