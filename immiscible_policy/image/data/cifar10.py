"""CIFAR-10: a folder of images, a zip of one, or torchvision's directory; prompts are the class names.

Images of a folder or a zip come class by class in turn, in the order of their names, so that any first n of them hold
every class alike; torchvision's come in its own order.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Decoder, Shape, cached
from immiscible_policy.image.data.files import Dataset, Listing, find, in_turn, open_source

SIDE = 32
SHAPE = Shape(SIDE, exact=(SIDE, SIDE), rgb=True)
BATCHES = "cifar-10-batches-py"
WANTED = (
    "CIFAR-10 is a folder with train/CLASS/*.png (or .jpg) and test/CLASS/*.png, a zip of one, or torchvision's "
    f"directory with {BATCHES} (cifar-10-python.tar.gz of cs.toronto.edu/~kriz/cifar.html, unpacked)"
)


def read_cifar10(path: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    """Images (N, 3, 32, 32), uint8, and each one's class name; ValueError if absent, damaged or not 32x32 RGB."""
    root = path.parent if path.name == BATCHES else path
    if (root / BATCHES).is_dir():
        return _from_torchvision(root, split, limit)
    listing = list_cifar10(path, split).first(limit)
    return cached(Decoder(listing, SHAPE)), list(listing.texts or ())


def list_cifar10(path: Path, split: str) -> Listing:
    """Images of a folder or zip, `train/CLASS/NAME.png` at its top or one folder down; ValueError without any."""
    source = open_source(path, WANTED)
    within = find(source, split)
    files = [] if within is None else in_turn(file for file in source.images(within) if file.depth == 1)
    if not files:
        raise ValueError(f"{path} has no {split} images; {WANTED}")
    return Listing(source, within or "", files, [file.class_name.replace("_", " ") for file in files])


def _from_torchvision(root: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise ValueError(f"{root / BATCHES} needs torchvision: install it, or give an image folder") from None
    try:
        data = CIFAR10(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"{root / BATCHES}: {error}") from None
    images = torch.from_numpy(data.data[:limit]).permute(0, 3, 1, 2).contiguous()  # from (N, 32, 32, 3)
    return images, [data.classes[label] for label in data.targets[:limit]]


CIFAR10 = Dataset("CIFAR-10", ("train", "test"), WANTED, list_cifar10, size=SIDE)
