"""`load_images`: a data set by its name."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.image.data.decode import Decoder, Shape, cached
from immiscible_policy.image.data.files import digest
from immiscible_policy.image.data.images import Images, in_memory
from immiscible_policy.image.data.pixels import require_divisor, shrink
from immiscible_policy.image.data.published import CELEBA, CIFAR10, COCO, FOLDER, IMAGENET, SIDE, read_cifar10

MEMORY_BYTES = 4 * 2**30  # Pixels that are held whole: CelebA at 64 takes 2.5 GB, MS-COCO at 256 takes 23 GB
DATASETS = {"cifar10": CIFAR10, "celeba": CELEBA, "imagenet": IMAGENET, "coco": COCO, "folder": FOLDER}


def load_images(
    dataset: str, path: Path | str, *, split: str = "train", size: int | None = None, limit: int | None = None
) -> Images:
    """Read a data set, or prepare to.

    Where N images of 3 S^2 bytes fit into `MEMORY_BYTES` they are held in memory, otherwise read from the disk
    whenever they are asked for. CIFAR-10 is always held, at 32x32 or smaller: a smaller size averages square blocks
    and must divide 32, a larger one is interpolated (bicubic) batch by batch.
    `split`: `train`, or `test` (CIFAR-10, CelebA), `valid` (CelebA), `val` (ImageNet, MS-COCO). `size`: side S of
    the images, pixels; None for 32, 64 (CelebA) or 256 (ImageNet, MS-COCO).
    ValueError if dataset, split, size or limit is unusable, the data set is not there or incomplete, or an image cannot
    be read or is not of the data set's kind.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset={dataset}: choose from {', '.join(DATASETS)}")
    data, path = DATASETS[dataset], Path(path)
    if size is not None and size < 1:
        raise ValueError(f"size={size}: needs 1 or more pixels")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: needs 1 or more images, or None for all")
    side = size or data.size
    if side is None:
        raise ValueError(f"size=None: {data.name} needs the side that its images are resized to, as in size=64")
    if dataset == "cifar10" and side < SIDE:
        require_divisor(side, SIDE)
    if split not in data.splits:
        raise ValueError(f"split={split}: {data.name} has {', '.join(data.splits)}")
    if not path.exists():
        raise ValueError(f"{path} is missing; {data.wanted}")
    if dataset == "cifar10":
        images, classes = read_cifar10(path, split, limit)
        return in_memory(shrink(images, min(side, SIDE)), side, classes)
    listing = data.find(path, split).first(limit)
    decoder = Decoder(listing, Shape(side, data.exact))
    if len(decoder) * 3 * side**2 > MEMORY_BYTES:
        return Images(decoder, side, digest([str(side), listing.names_hash]), listing.texts)
    return in_memory(cached(decoder), side, listing.texts)
