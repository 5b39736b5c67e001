"""Data sets of files: CIFAR-10, CelebA, ImageNet, MS-COCO, or any folder.

CIFAR-10: a folder of RGB images, a zip of it, or torchvision's directory; prompts are the class names. Images of a
folder or a zip come class by class in turn, in the order of their names, so that any first n of them have every class
alike; torchvision's come in its own order. In the other data sets what is not RGB becomes RGB.

CelebA, aligned and cropped by its authors: faces of 178x218 pixels, no prompts. The largest square in the middle,
178x178, is resized. The published consistency models (Song et al., 2023) have no CelebA to follow; score-based models
before them (Song et al., 2021) cut out 140x140. The crop decides the FID: compare only with
a reference of the same one.

ImageNet-1k (ILSVRC 2012): folders of photographs by WordNet id; prompts are the classes'
names, all synonyms of the line: "tench, Tinca tinca".

MS-COCO 2017: photographs, each with about five captions, one of which is its prompt.

A folder of images, or a zip of one, is flat and without prompts, or has a folder for every class; prompts are the names
of the class folders, with underscores as spaces.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy.image.data.decode import Decoder, Shape, cached
from immiscible_policy.image.data.files import Dataset, Listing, Zip, find, in_turn, open_source

SIDE = 32
SHAPE = Shape(SIDE, exact=(SIDE, SIDE), rgb=True)
BATCHES = "cifar-10-batches-py"
CIFAR10_WANTED = (
    "CIFAR-10 is a folder with train/CLASS/*.png (or .jpg) and test/CLASS/*.png, a zip of one, or torchvision's "
    f"directory with {BATCHES} (cifar-10-python.tar.gz of cs.toronto.edu/~kriz/cifar.html, unpacked)"
)
CELEBA_SPLITS = ("train", "valid", "test")
FACES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
CELEBA_WANTED = (
    f"CelebA is {FACES}.zip (or that folder, unpacked) with {PARTITION} beside it, both from "
    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
)
KAGGLE = "ILSVRC/Data/CLS-LOC"
NAMES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
IMAGENET_WANTED = (
    "ImageNet is a folder with train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG (ILSVRC 2012, image-net.org or its "
    f"challenge on kaggle.com), with {NAMES[0]} of that challenge beside train"
)
COCO_WANTED = (
    "MS-COCO is a folder with train2017/*.jpg and annotations/captions_train2017.json (train2017.zip, val2017.zip and "
    "annotations_trainval2017.zip of cocodataset.org, unpacked)"
)
FOLDER_WANTED = "it should be a folder (or a zip of one) of .jpg or .png images, flat or as CLASS/NAME.jpg"


def read_cifar10(path: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    """Images (N, 3, 32, 32), uint8, and each one's class name; ValueError if absent, damaged or not 32x32 RGB."""
    root = path.parent if path.name == BATCHES else path
    if (root / BATCHES).is_dir():
        return _from_torchvision(root, split, limit)
    listing = list_cifar10(path, split).first(limit)
    return cached(Decoder(listing, SHAPE)), list(listing.texts or ())


def list_cifar10(path: Path, split: str) -> Listing:
    """Images of a folder or zip, `train/CLASS/NAME.png` at its top or one folder down; ValueError without any."""
    source = open_source(path, CIFAR10_WANTED)
    within = find(source, split)
    files = [] if within is None else in_turn(file for file in source.images(within) if file.depth == 1)
    if not files:
        raise ValueError(f"{path} has no {split} images; {CIFAR10_WANTED}")
    return Listing(source, within or "", files, [file.class_name.replace("_", " ") for file in files])


def _from_torchvision(root: Path, split: str, limit: int | None) -> tuple[Tensor, list[str]]:
    try:
        from torchvision.datasets import CIFAR10 as Torchvision
    except ImportError:
        raise ValueError(f"{root / BATCHES} needs torchvision: pip install torchvision, or use a folder") from None
    try:
        data = Torchvision(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"{root / BATCHES}: {error}") from None
    images = torch.from_numpy(data.data[:limit]).permute(0, 3, 1, 2).contiguous()  # from (N, 32, 32, 3)
    return images, [data.classes[label] for label in data.targets[:limit]]


CIFAR10 = Dataset("CIFAR-10", ("train", "test"), CIFAR10_WANTED, list_cifar10, size=SIDE)


def list_celeba(path: Path, split: str) -> Listing:
    """The images of a split in the order of their names; ValueError if images or the list of splits lack any."""
    archive = path / f"{FACES}.zip"
    source = open_source(archive if archive.is_file() and not (path / FACES).is_dir() else path, CELEBA_WANTED)
    within = find(source, FACES) or ""
    there = {file.name: file for file in source.images(within) if file.depth == 0}
    if not there:
        raise ValueError(f"{path} has no images of CelebA; {CELEBA_WANTED}")
    partition = next((place for place in (path / PARTITION, path.parent / PARTITION) if place.is_file()), None)
    if partition is None:
        raise ValueError(f"{path}: {PARTITION} is missing; {CELEBA_WANTED}")
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(words) != 2 or words[1] not in ("0", "1", "2") for words in lines):
        raise ValueError(f"{partition} should have lines like '000001.jpg 0'; {CELEBA_WANTED}")
    names = sorted(name for name, part in lines if part == str(CELEBA_SPLITS.index(split)))
    if not names:
        raise ValueError(f"{partition} lists no {split} images; {CELEBA_WANTED}")
    absent = [name for name in names if name not in there]
    if absent:
        raise ValueError(f"{path} lacks {absent[0]}, which {PARTITION} names; is it unpacked completely?")
    return Listing(source, within, [there[name] for name in names])


CELEBA = Dataset("CelebA", CELEBA_SPLITS, CELEBA_WANTED, list_celeba, size=64, exact=(178, 218))


def list_imagenet(path: Path, split: str) -> Listing:
    """The images of a split, the classes in turn, with their names; ValueError if either is missing.

    The published `val` is flat and must be sorted into class folders first.
    """
    source = open_source(path, IMAGENET_WANTED, zips=False)
    within = find(source, split, f"{KAGGLE}/{split}")
    files = [] if within is None else in_turn(file for file in source.images(within) if file.depth == 1)
    if within is None or not files:
        raise ValueError(f"{path} has no {split}/nXXXXXXXX/*.JPEG; {IMAGENET_WANTED}")
    places = list((path / within).absolute().parents)[:4]  # beside the folder of the split, or up to three further up
    listed = next((place / name for place in places for name in NAMES if (place / name).is_file()), None)
    if listed is None:
        missing = (path / within).parent / NAMES[0]
        raise ValueError(f"{missing} is missing, nor is there {' or '.join(NAMES[1:])}; {IMAGENET_WANTED}")
    lines = (line.split(maxsplit=1) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    names = {words[0]: words[-1].strip() for words in lines}  # of `n01440764 tench, Tinca tinca` all but the id
    unnamed = sorted({file.class_name for file in files} - names.keys())
    if unnamed:
        raise ValueError(f"{listed} does not name the class {unnamed[0]}, a folder of {path / within}")
    return Listing(source, within, files, [names[file.class_name] for file in files])


IMAGENET = Dataset("ImageNet", ("train", "val"), IMAGENET_WANTED, list_imagenet, size=256)


def list_coco(path: Path, split: str) -> Listing:
    """The images of a split in the order of their names, each with one of its captions.

    Of an image's n captions, in the order of their ids, the one numbered CRC-32(file name) mod n is its prompt: always
    the same one, whichever other images are there.
    ValueError if images or captions are missing.
    """
    source, within = open_source(path, COCO_WANTED, zips=False), f"{split}2017"
    files = sorted(file for file in source.images(within) if file.depth == 0)
    if not files:
        raise ValueError(f"{path} has no {within}/*.jpg; {COCO_WANTED}")
    captions = _captions(path / "annotations" / f"captions_{within}.json")
    bare = [file.name for file in files if not captions[file.name]]
    if bare:
        many = f"{len(bare)} of {len(files)} images"
        raise ValueError(f"{path}: {within}/{bare[0]} has no caption, as {many}; {COCO_WANTED}")
    texts = [captions[file.name][zlib.crc32(file.name.encode()) % len(captions[file.name])] for file in files]
    return Listing(source, within, files, texts)


def _captions(annotations: Path) -> dict[str, list[str]]:
    """All captions of every image, by file name, in the order of their ids."""
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[str]] = defaultdict(list)
        for caption in sorted(content["annotations"], key=lambda caption: caption["id"]):
            captions[names[caption["image_id"]]].append(" ".join(caption["caption"].split()))
    except FileNotFoundError:
        raise ValueError(f"{annotations} is missing; {COCO_WANTED}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{annotations} has no captions of MS-COCO; is the download complete?") from None
    return captions


COCO = Dataset("MS-COCO", ("train", "val"), COCO_WANTED, list_coco, size=256)


def list_folder(path: Path, split: str) -> Listing:
    """All images, of a flat folder by name, of class folders in turn; ValueError if none, or not all lie alike."""
    source = open_source(path, FOLDER_WANTED)
    tops = {file.name.partition("/")[0] for file in source.images("")} if isinstance(source, Zip) else set()
    around = tops.pop() if len(tops) == 1 else ""  # the folder that a zip was made of, if it is in the zip
    within = around if source.has(around) else ""
    files = in_turn(source.images(within))
    if not files:
        raise ValueError(f"{path} has no images; {FOLDER_WANTED}")
    highest, deepest = (choose(files, key=lambda file: file.depth) for choose in (min, max))
    if deepest.depth > 1 or deepest.depth != highest.depth:
        raise ValueError(f"{path} holds {highest.name} and {deepest.name}; {FOLDER_WANTED}")
    classes = [file.class_name.replace("_", " ") for file in files]
    return Listing(source, within, files, classes if all(classes) else None)


FOLDER = Dataset("a folder", ("train",), FOLDER_WANTED, list_folder, size=None)
