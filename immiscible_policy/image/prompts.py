"""Which prompts a set of images is trained with: its own, those of a file, or none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy.image.data import Images

OWN, NONE = "own", "none"
"""Sources that are no file: what the images themselves know, class names or captions; and nothing."""


@dataclass(frozen=True)
class Prompted:
    """Images with other prompts than their own.

    Attributes:
        images: The images.
        texts: One prompt per image, or None for no prompts.
    """

    images: Images
    texts: tuple[str, ...] | None

    @property
    def size(self) -> int:
        """Side of the images [px]."""
        return self.images.size

    @property
    def content_hash(self) -> str:
        """Hash of images and prompts."""
        if self.texts is None:
            return self.images.content_hash
        return hashlib.sha256("\n".join((self.images.content_hash, *self.texts)).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def pixels(self, rows: Tensor) -> Tensor:
        """Bytes (B, 3, S, S) of some images."""
        return self.images.pixels(rows)

    def prompts(self, rows: Tensor) -> list[str] | None:
        """The prompts of some images."""
        return None if self.texts is None else [self.texts[row] for row in rows.tolist()]

    def to(self, device: torch.device | str) -> Prompted:
        """The same, with the pixels on another device."""
        return replace(self, images=self.images.to(device))


def prompts_for(images: Images, source: str) -> Images:
    """The images with the prompts of a source.

    Args:
        images: The images.
        source: `own`, the class names or captions that the images know; `none`, unconditional; or a text file
            (UTF-8) with one prompt per line, for the images in their order; an empty line is the empty prompt.

    Raises:
        ValueError: If the images know no prompts, or the file is missing, unreadable or of the wrong length.
    """
    if source == NONE:
        return Prompted(images, None)
    if source != OWN:
        return Prompted(images, _read(Path(source), len(images)))
    if images.prompts(torch.zeros(1, dtype=torch.int64)) is None:
        raise ValueError(f"prompts={source}: these images have none; use prompts=none, or a file with one per line")
    return images


def _read(path: Path, count: int) -> tuple[str, ...]:
    """The lines of a prompt file."""
    if not path.is_file():
        raise ValueError(f"prompts={path}: no such file; known besides files: {OWN}, {NONE}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"prompts={path} is no UTF-8 text") from None
    lines = tuple(text.removesuffix("\n").split("\n"))
    if len(lines) != count:
        raise ValueError(f"prompts={path} has {len(lines)} lines for {count} images; it needs one prompt per image")
    return lines
