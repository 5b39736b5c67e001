"""CIFAR-10 in memory: from a folder of images, a zip of one, or torchvision's data set.

Shape legend: N images, S pixels along a side.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SIDE = 32
SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
BATCHES = "cifar-10-batches-py"
WANTED = (
    "a folder with train/CLASS/*.png (or .jpg) and test/CLASS/*.png, a zip of one, or torchvision's directory "
    f"with {BATCHES} (cifar-10-python.tar.gz of cs.toronto.edu/~kriz/cifar.html, unpacked)"
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
    path = Path(path)
    if split not in SPLITS:
        raise ValueError(f"split={split}: CIFAR-10 has {' and '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: needs 1 or more images, or None for all")
    if size is not None:
        _require_divisor(size, SIDE)
    if not path.exists():
        raise ValueError(f"{path} is missing; CIFAR-10 is {WANTED}")
    images = _from_zip(path, split, limit) if path.is_file() else _from_directory(path, split, limit)
    return images if size is None else shrink(images, size)


def shrink(images: Tensor, size: int) -> Tensor:
    """Average images (N, C, S, S) over square blocks to (N, C, size, size), in the same dtype; bytes are rounded.

    Raises:
        ValueError: If size does not divide the side.
    """
    side = images.shape[-1]
    _require_divisor(size, side)
    if size == side:
        return images
    if images.is_floating_point():
        return torch.nn.functional.avg_pool2d(images, side // size)
    parts = (torch.nn.functional.avg_pool2d(part.float(), side // size).round().to(torch.uint8) for part in
             images.split(4096))  # fmt: skip
    return torch.cat(list(parts))


def to_pixels(images: Tensor) -> Tensor:
    """Bytes 0..255 to floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Floats to bytes, the inverse of `to_pixels`; what lies outside [-1, 1] is clipped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _require_divisor(size: int, side: int) -> None:
    if size < 1 or side % size:
        raise ValueError(f"size={size}: averaging needs a side that divides {side}")


def _from_zip(path: Path, split: str, limit: int | None) -> Tensor:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip archive; CIFAR-10 is {WANTED}")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).parts[-3:-2] == (split,)]
        return _decode(path, split, names, limit, archive.read)


def _from_directory(path: Path, split: str, limit: int | None) -> Tensor:
    if (path / BATCHES).is_dir():
        return _from_torchvision(path, split, limit)
    if path.name == BATCHES:
        return _from_torchvision(path.parent, split, limit)
    files = (file.relative_to(path).as_posix() for pattern in (f"{split}/*/*", f"*/{split}/*/*")
             for file in path.glob(pattern))  # fmt: skip
    return _decode(path, split, files, limit, lambda name: (path / name).read_bytes())


def _from_torchvision(root: Path, split: str, limit: int | None) -> Tensor:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise ValueError(
            f"{root / BATCHES} needs torchvision: pip install torchvision, or give an image folder"
        ) from None
    try:
        pixels = CIFAR10(str(root), train=split == "train", download=False).data  # (N, 32, 32, 3)
    except RuntimeError as error:
        raise ValueError(f"{root / BATCHES}: {error}") from None
    return torch.from_numpy(pixels[:limit]).permute(0, 3, 1, 2).contiguous()


def _decode(path: Path, split: str, names: Iterable[str], limit: int | None, read: Callable[[str], bytes]) -> Tensor:
    """Decode the images of a split, given the names of all files that may be among them."""
    chosen = _interleaved(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES)[:limit]
    if not chosen:
        raise ValueError(f"{path} holds no {split} images; CIFAR-10 is {WANTED}")
    images = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)
    for row, name in zip(images, chosen, strict=True):
        row[:] = _rgb(f"{path}: {name}", read(name))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _interleaved(names: Iterable[str]) -> list[str]:
    """Names CLASS/FILE in the order of the classes in turn; hidden files are left out."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if not PurePosixPath(name).name.startswith("."):
            classes[PurePosixPath(name).parts[-2]].append(name)
    return [name for name in chain.from_iterable(zip_longest(*classes.values())) if name is not None]


def _rgb(label: str, content: bytes) -> np.ndarray:
    """Pixels (32, 32, 3) of an encoded image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode != "RGB":
                raise ValueError(f"{label} has mode {image.mode} (grayscale is L); images must be RGB")
            if image.size != (SIDE, SIDE):
                raise ValueError(f"{label} has {image.width}x{image.height} pixels; CIFAR-10 has {SIDE}x{SIDE}")
            return np.asarray(image)
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{label} cannot be read as an image; is the download complete?") from None
