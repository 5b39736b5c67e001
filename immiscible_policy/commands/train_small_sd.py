"""`python -m immiscible_policy.commands.train_small_sd`: the trained parts of a Stable Diffusion that fits a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from immiscible_policy.cli import (
    COUNT,
    REQUIRED,
    SEED,
    CommandError,
    Option,
    parse,
    program,
    require_extra,
    require_new,
)
from immiscible_policy.image.data import DATASETS, load_images

USAGE = """\
usage: python -m immiscible_policy.commands.train_small_sd data=PATH out=DIR [KEY=VALUE ...]

Train the autoencoder and the CLIP of a small Stable Diffusion on images of 32x32 pixels with class names, in about 20
minutes on a CPU core. Its images resemble what it was trained on, and its CLIP gives CLIPScores:

  python -m immiscible_policy.commands.train_small_sd data=cifar10.zip out=small_sd
  python train_image.py model=sd scale=cpu pretrained=small_sd/pipeline data=cifar10.zip noise=knn k=64 out=runs/sd_knn
  python eval_image.py run=runs/sd_knn clip=small_sd/clip
"""
OPTIONS = {
    "data": Option(Path, REQUIRED, "images with class names"),
    "dataset": Option(str, "cifar10", f"name of the data set: {', '.join(DATASETS)}"),
    "out": Option(Path, REQUIRED, "new directory; pipeline and clip go there"),
    "steps": Option(COUNT, 1500, "training steps of each, of 32 images"),
    "seed": Option(SEED, 0, "seed of weights, order and augmentation"),
}


@program
def main(words: list[str]) -> None:
    """Train and write both."""
    options = parse(words, OPTIONS, USAGE)
    require_extra("sd")
    require_new("out", options["out"])
    from immiscible_policy.recipes.small_stable_diffusion import CLIP, PIPELINE, SIZE, train_parts

    images = load_images(options["dataset"], options["data"], split="train", size=SIZE)
    if images.texts is None:
        raise CommandError(f"data={options['data']}: these images have no class names, which become the prompts")
    out: Path = options["out"]
    train_parts(images, out, steps=options["steps"], seed=options["seed"], record=_show)
    print(f"saved {out / PIPELINE} for pretrained=, and {out / CLIP} for clip=")


def _show(name: str, row: dict[str, Any]) -> None:
    if "loss" in row:
        print(f"{name}  step {row['step']}  loss {row['loss']:.4f}  {row['rate']:.1f} steps/s", flush=True)


if __name__ == "__main__":
    main()
