"""Which prompts a set of images is trained with: its own, those of a file, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from immiscible_policy.image.data import Images

OWN, NONE = "own", "none"
"""Sources that are no file: what the images themselves know, class names or captions; and nothing."""


def prompts_for(images: Images, source: str) -> Images:
    """The images with the prompts of a source.

    `own` are the class names or captions that the images know, `none` is unconditional; else a text file (UTF-8) with
    one prompt per line, for the images in their order; an empty line is the empty prompt.

    Raises:
        ValueError: If the images know no prompts, or the file is missing, unreadable or of the wrong length.
    """
    if source == NONE:
        return replace(images, texts=None)
    if source == OWN:
        if images.texts is None:
            raise ValueError(f"prompts={OWN}: these images have none; use prompts=none, or a file with one per line")
        return images
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"prompts={path}: no such file; known besides files: {OWN}, {NONE}")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"prompts={path} is no UTF-8 text") from None
    if len(lines) != len(images):
        raise ValueError(
            f"prompts={path} has {len(lines)} lines for {len(images)} images; it needs one prompt per image"
        )
    return images.with_texts(lines)
