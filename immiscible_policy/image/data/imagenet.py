"""ImageNet-1k (ILSVRC 2012): folders of photographs by WordNet id; prompts are the classes' English names.

Some images are grayscale or CMYK; they become RGB.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.image.data.files import Dataset, Listing, find, in_turn, open_source

KAGGLE = "ILSVRC/Data/CLS-LOC"
NAMES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
WANTED = (
    "ImageNet is a folder with train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG (ILSVRC 2012, image-net.org or its "
    f"challenge on kaggle.com), with {NAMES[0]} of that challenge beside train"
)


def list_imagenet(path: Path, split: str) -> Listing:
    """The images of a split, the classes in turn; prompts are the first of each class's names.

    The published `val` is flat and must be sorted into class folders first.

    Raises:
        ValueError: If images or class names are missing.
    """
    source = open_source(path, WANTED, zips=False)
    within = find(source, split, f"{KAGGLE}/{split}")
    files = [] if within is None else in_turn(file for file in source.images(within) if file.depth == 1)
    if within is None or not files:
        raise ValueError(f"{path} holds no {split}/nXXXXXXXX/*.JPEG; {WANTED}")
    listed = _names_file(path / within)
    lines = (line.split(maxsplit=1) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    names = {words[0]: words[-1].split(",")[0].strip() for words in lines}  # from `n01440764 tench, Tinca tinca`
    unnamed = sorted({file.class_name for file in files} - names.keys())
    if unnamed:
        raise ValueError(f"{listed} names no class {unnamed[0]}, a folder of {path / within}")
    return Listing(source, within, files, [names[file.class_name] for file in files])


def _names_file(split: Path) -> Path:
    """The file of class names: beside the folder of a split, or up to three folders further up."""
    for place in list(split.absolute().parents)[:4]:
        for name in NAMES:
            if (place / name).is_file():
                return place / name
    raise ValueError(f"{split.parent / NAMES[0]} is missing, nor is there {' or '.join(NAMES[1:])}; {WANTED}")


IMAGENET = Dataset("ImageNet", ("train", "val"), WANTED, list_imagenet, size=256)
