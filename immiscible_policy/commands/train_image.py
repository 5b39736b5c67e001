"""`python train_image.py`: words become options here; `commands.training` trains."""

from __future__ import annotations

from immiscible_policy.cli import program
from immiscible_policy.commands.training import train
from immiscible_policy.recipes.image_config import SCHEMA

USAGE = """\
usage: python train_image.py model=MODEL data=PATH [KEY=VALUE ...]

Train an image model with noise chosen by a selector; draws samples on the way.

  python train_image.py model=flow noise=knn k=4 seed=0..2 data=cifar10-jpeg.zip
  python train_image.py model=consistency scale=paper dataset=celeba size=64 data=DIR
  python train_image.py model=sd pretrained=DIR noise=knn k=64 dataset=imagenet data=DIR
"""


@program
def main(words: list[str]) -> None:
    """Train an image model."""
    train(words, SCHEMA, USAGE, "immiscible_policy.recipes.image:ImageRecipe")
