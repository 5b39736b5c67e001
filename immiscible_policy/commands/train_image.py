"""`python train_image.py`: words become options here; `training.driver` does the work."""

from __future__ import annotations

from immiscible_policy.cli import asks_for_help, run
from immiscible_policy.recipes.image_config import SCHEMA

USAGE = """\
usage: python train_image.py model=MODEL data=PATH [KEY=VALUE ...]

Train an image model with noise chosen by a selector; draws samples on the way.

  python train_image.py model=flow noise=knn k=4 seed=0..2 data=cifar10-jpeg.zip
  python train_image.py model=ddim noise=linear data_scale=2 data=cifar10-jpeg.zip out=runs/ddim
  python train_image.py model=consistency scale=paper dataset=celeba size=64 data=DIR
  python train_image.py model=sd pretrained=DIR noise=knn k=64 dataset=imagenet data=DIR
"""


def main() -> None:
    """Console command: read the words after it, do the work, turn mistakes into one line."""
    run(_main)


def _main(words: list[str]) -> None:
    if asks_for_help(words):
        print(SCHEMA.help(USAGE))
        return
    config = SCHEMA.compose(words)
    from immiscible_policy.recipes.image import ImageRecipe
    from immiscible_policy.training.driver import train_run

    train_run(ImageRecipe, config)
