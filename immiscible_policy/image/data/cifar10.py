"""CIFAR-10: a folder of images, a zip of one, or torchvision's directory; prompts are the class names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy.image.data.cache import cached
from immiscible_policy.image.data.checks import require_limit, require_path, require_split
from immiscible_policy.image.data.decode import Decoder, Shape
from immiscible_policy.image.data.files import class_of, depth, find, in_turn, open_source
from immiscible_policy.image.data.listing import Listing
from immiscible_policy.image.data.pixels import require_divisor, shrink

SIDE = 32
SPLITS = ("train", "test")
SHAPE = Shape(SIDE, exact=(SIDE, SIDE), rgb=True)
BATCHES = "cifar-10-batches-py"
WANTED = (
    "CIFAR-10 is a folder with train/CLASS/*.png (or .jpg) and test/CLASS/*.png, a zip of one, or torchvision's "
    f"directory with {BATCHES} (cifar-10-python.tar.gz of cs.toronto.edu/~kriz/cifar.html, unpacked)"
)


def load_cifar10(path: Path | str, split: str = "train", limit: int | None = None, size: int | None = None) -> Tensor:
    """Read CIFAR-10 into memory.

    Images of a folder or a zip come class by class in turn, in the order of their names, so that any first n of them
    hold every class alike; torchvision's come in its own order.

    Args:
        path: A folder with `train/CLASS/NAME.png` (or .jpg; perhaps one folder further down), a zip of one, or
            torchvision's data set directory.
        split: `train` or `test`.
        limit: Only the first so many images; None for all.
        size: Side to average the images to, see `shrink`; None leaves 32.

    Returns:
        Images (N, 3, S, S), uint8.

    Raises:
        ValueError: If the path is missing or holds no such data set, an image cannot be read or is not 32x32 RGB, or
            split, limit or size is unusable.
    """
    if size is not None:
        require_divisor(size, SIDE)
    images, _ = read_cifar10(Path(path), split, limit)
    return images if size is None else shrink(images, size)


def read_cifar10(path: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    """Images (N, 3, 32, 32), uint8, and the name of each one's class; see `load_cifar10`."""
    require_split("CIFAR-10", split, SPLITS)
    require_limit(limit)
    require_path(path, WANTED)
    if path.name == BATCHES:
        path = path.parent
    if (path / BATCHES).is_dir():
        return _from_torchvision(path, split, limit)
    listing = list_cifar10(path, split).first(limit)
    return cached(listing, SHAPE, Decoder(listing, SHAPE).all), list(listing.texts or ())


def list_cifar10(path: Path, split: str) -> Listing:
    """The images of a folder or a zip.

    Raises:
        ValueError: If there are none.
    """
    source = open_source(path, WANTED)
    within = find(source, split)
    files = [] if within is None else in_turn(file for file in source.images(within) if depth(file) == 1)
    if not files:
        raise ValueError(f"{path} holds no {split} images; {WANTED}")
    return Listing(source, within or "", files, [class_of(file).replace("_", " ") for file in files])


def _from_torchvision(root: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise ValueError(
            f"{root / BATCHES} needs torchvision: pip install torchvision, or give an image folder"
        ) from None
    try:
        data = CIFAR10(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"{root / BATCHES}: {error}") from None
    images = torch.from_numpy(data.data[:limit]).permute(0, 3, 1, 2).contiguous()  # from (N, 32, 32, 3)
    return images, [data.classes[label] for label in data.targets[:limit]]
