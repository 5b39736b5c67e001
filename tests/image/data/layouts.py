"""The published layouts of data sets, in small, written to disk."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from immiscible_policy.image.data import Images


def noise(seed: int, width: int, height: int) -> np.ndarray:
    """Random pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    """Write pixels (H, W, 3), or (H, W), in the format that the name says, converted to a mode first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def read(path: Path) -> np.ndarray:
    """What is stored in a file (3, H, W)."""
    return np.asarray(Image.open(io.BytesIO(path.read_bytes()))).transpose(2, 0, 1)


def every(images: Images) -> tuple[np.ndarray, list[str] | None]:
    """All pixels (N, 3, S, S) and prompts."""
    rows = torch.arange(len(images))
    return images.pixels(rows).numpy(), images.prompts(rows)


def zipped(folder: Path) -> Path:
    """A zip of a folder, the folder itself included, beside it."""
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def zipped_backwards(folder: Path) -> Path:
    """A zip of a folder's content in the opposite order."""
    path = folder.with_name(f"{folder.name}-backwards.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((file for file in folder.rglob("*") if file.is_file()), reverse=True):
            archive.write(file, file.relative_to(folder))
    return path


def write_celeba(root: Path, splits: str = "0021012") -> Path:
    """Faces 000001.jpg, 000002.jpg, ...; one digit of `splits` for each."""
    names = [f"{number:06d}.jpg" for number in range(1, len(splits) + 1)]
    for seed, name in enumerate(names):
        write(root / "img_align_celeba" / name, noise(seed, 178, 218))
    lines = [f"{name} {part}\n" for name, part in zip(names, splits, strict=True)]
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return root


IMAGENET = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark",
}


def write_imagenet(root: Path, per_class: int = 2, split: str = "train", below: str = "") -> Path:
    """Photographs of three classes, each of its own size, below root/`below`, with the mapping at the root."""
    for number in range(per_class):
        for place, wnid in enumerate(IMAGENET):
            pixels = noise(10 * place + number, 40 + 8 * place, 50 - 4 * number)
            write(root / below / split / wnid / f"{wnid}_{number}.JPEG", pixels)
    lines = [f"{wnid} {names}\n" for wnid, names in IMAGENET.items()]
    (root / "LOC_synset_mapping.txt").write_text("".join(lines))
    return root


def write_coco(root: Path, count: int = 4, captions: int = 5) -> Path:
    """Photographs with captions 'image I caption J', listed in no order."""
    names = [f"{7 * number:012d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        write(root / "train2017" / name, noise(number, 48, 32))
    images = [{"id": 100 + number, "file_name": name} for number, name in enumerate(names)]
    annotations = [
        {"id": 10 * number + j, "image_id": 100 + number, "caption": f" image {number}\n caption {j}. "}
        for number in range(count)
        for j in range(captions)
    ]
    order = np.random.default_rng(0).permutation(len(annotations))
    (root / "annotations").mkdir()
    content = {"images": images[::-1], "annotations": [annotations[place] for place in order]}
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return root
