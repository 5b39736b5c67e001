"""MS-COCO 2017: photographs, each with about five captions, one of which is its prompt.

Some images are grayscale; they become RGB.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from pathlib import Path

from immiscible_policy.image.data.files import Dataset, Listing, open_source

WANTED = (
    "MS-COCO is a folder with train2017/*.jpg and annotations/captions_train2017.json (train2017.zip, val2017.zip and "
    "annotations_trainval2017.zip of cocodataset.org, unpacked)"
)


def list_coco(path: Path, split: str) -> Listing:
    """The images of a split in the order of their names, each with one of its captions.

    Of an image's n captions, in the order of their ids, the one numbered CRC-32(file name) mod n is its prompt: always
    the same one, whichever other images are there.

    Raises:
        ValueError: If images or captions are missing.
    """
    source, within = open_source(path, WANTED, zips=False), f"{split}2017"
    files = sorted(file for file in source.images(within) if file.depth == 0)
    if not files:
        raise ValueError(f"{path} holds no {within}/*.jpg; {WANTED}")
    captions = _captions(path / "annotations" / f"captions_{within}.json")
    bare = [file.name for file in files if not captions[file.name]]
    if bare:
        raise ValueError(f"{path}: {within}/{bare[0]} has no caption, as {len(bare)} of {len(files)} images; {WANTED}")
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
        raise ValueError(f"{annotations} is missing; {WANTED}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{annotations} holds no captions of MS-COCO; is the download complete?") from None
    return captions


COCO = Dataset("MS-COCO", ("train", "val"), WANTED, list_coco, size=256)
