"""CelebA, aligned and cropped by its authors: faces of 178x218 pixels, no prompts.

The largest square in the middle, 178x178, is resized. The published consistency models (Song et al., 2023) have no
CelebA to follow; score-based models before them (Song et al., 2021) cut out 140x140. The crop decides the FID: compare
only with a reference of the same one.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.image.data.files import Dataset, Listing, find, open_source

SPLITS = ("train", "valid", "test")
IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
WANTED = (
    f"CelebA is {IMAGES}.zip (or that folder, unpacked) with {PARTITION} beside it, both from "
    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
)


def list_celeba(path: Path, split: str) -> Listing:
    """The images of a split, in the order of their names.

    Raises:
        ValueError: If images or list are missing, or the list names an image that is not there.
    """
    archive = path / f"{IMAGES}.zip"
    source = open_source(archive if archive.is_file() and not (path / IMAGES).is_dir() else path, WANTED)
    within = find(source, IMAGES) or ""
    there = {file.name: file for file in source.images(within) if file.depth == 0}
    if not there:
        raise ValueError(f"{path} holds no images of CelebA; {WANTED}")
    partition = next((place for place in (path / PARTITION, path.parent / PARTITION) if place.is_file()), None)
    if partition is None:
        raise ValueError(f"{path}: {PARTITION} is missing; {WANTED}")
    names = sorted(_names(partition, split))
    absent = [name for name in names if name not in there]
    if absent:
        raise ValueError(f"{path} lacks {absent[0]}, which {PARTITION} names; is it unpacked completely?")
    return Listing(source, within, [there[name] for name in names])


def _names(partition: Path, split: str) -> list[str]:
    """The images of a split, from lines `000001.jpg 0`: 0 for train, 1 for valid, 2 for test."""
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(words) != 2 or words[1] not in ("0", "1", "2") for words in lines):
        raise ValueError(f"{partition} should have lines like '000001.jpg 0'; {WANTED}")
    names = [name for name, part in lines if part == str(SPLITS.index(split))]
    if not names:
        raise ValueError(f"{partition} names no {split} images; {WANTED}")
    return names


CELEBA = Dataset("CelebA", SPLITS, WANTED, list_celeba, size=64, exact=(178, 218))
