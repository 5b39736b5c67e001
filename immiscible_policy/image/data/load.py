"""`load_images`: a data set by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from immiscible_policy.image.data import celeba, cifar10, coco, folder, imagenet
from immiscible_policy.image.data.cache import cached
from immiscible_policy.image.data.checks import require_limit, require_path, require_split
from immiscible_policy.image.data.decode import Decoder, Shape
from immiscible_policy.image.data.images import Images, MemoryImages, in_memory, on_disk
from immiscible_policy.image.data.listing import Listing
from immiscible_policy.image.data.pixels import require_divisor, shrink

MEMORY_BYTES = 4 * 2**30
"""Pixels that are held whole: CelebA at 64 takes 2.5 GB, MS-COCO at 256 takes 23 GB."""


@dataclass(frozen=True)
class Published:
    """A data set that is cropped and resized as it is read.

    Attributes:
        name: As people write it.
        splits: Its parts.
        wanted: What to download, from where, and how it must lie.
        find: (path, split) -> its images.
        size: Side unless another is asked for; None if one must be.
        exact: Width and height of every published image; None if they differ.
    """

    name: str
    splits: tuple[str, ...]
    wanted: str
    find: Callable[[Path, str], Listing]
    size: int | None
    exact: tuple[int, int] | None = None


PUBLISHED = {
    "celeba": Published("CelebA", celeba.SPLITS, celeba.WANTED, celeba.list_celeba, 64, celeba.EXACT),
    "imagenet": Published("ImageNet", imagenet.SPLITS, imagenet.WANTED, imagenet.list_imagenet, 256),
    "coco": Published("MS-COCO", coco.SPLITS, coco.WANTED, coco.list_coco, 256),
    "folder": Published("a folder", folder.SPLITS, folder.WANTED, folder.list_folder, None),
}
DATASETS = ("cifar10", *PUBLISHED)


def load_images(
    dataset: str, path: Path | str, *, split: str = "train", size: int | None = None, limit: int | None = None
) -> Images:
    """Read a data set, or prepare to.

    Where N images of 3 S^2 bytes fit into `MEMORY_BYTES` they are held in memory, otherwise read from the disk
    whenever they are asked for. CIFAR-10 is always held, at 32x32 or smaller: a smaller size averages square blocks
    and must divide 32, a larger one is interpolated (bicubic) batch by batch.

    Args:
        dataset: `cifar10`, `celeba`, `imagenet`, `coco` or `folder`.
        path: Where it lies: see the data set's module, or the message about a path where it does not.
        split: `train`, or `test` (CIFAR-10, CelebA), `valid` (CelebA), `val` (ImageNet, MS-COCO).
        size: Side S of the images, pixels; None for 32, 64 (CelebA) or 256 (ImageNet, MS-COCO).
        limit: Only the first so many images; None for all.

    Raises:
        ValueError: If dataset, split, size or limit is unusable, the data set is not there or incomplete, or an image
            cannot be read or is not of the data set's kind.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset={dataset}: known are {', '.join(DATASETS)}")
    if size is not None and size < 1:
        raise ValueError(f"size={size}: needs 1 or more pixels")
    require_limit(limit)
    if dataset == "cifar10":
        return _cifar10(Path(path), split, size or cifar10.SIDE, limit)
    return _published(PUBLISHED[dataset], Path(path), split, size, limit)


def _cifar10(path: Path, split: str, size: int, limit: int | None) -> MemoryImages:
    if size < cifar10.SIDE:
        require_divisor(size, cifar10.SIDE)
    images, classes = cifar10.read_cifar10(path, split, limit)
    return in_memory(shrink(images, min(size, cifar10.SIDE)), size, classes)


def _published(data: Published, path: Path, split: str, size: int | None, limit: int | None) -> Images:
    side = size or data.size
    if side is None:
        raise ValueError(f"size=None: {data.name} needs the side that its images are resized to, as in size=64")
    require_split(data.name, split, data.splits)
    require_path(path, data.wanted)
    listing, shape = data.find(path, split).first(limit), Shape(side, data.exact)
    decoder = Decoder(listing, shape)
    if len(listing.files) * 3 * side**2 > MEMORY_BYTES:
        return on_disk(decoder)
    return in_memory(cached(listing, shape, decoder.all), side, listing.texts)
