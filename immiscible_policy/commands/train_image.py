"""`python train_image.py`: words become options here; `training.driver` does the work."""

from __future__ import annotations

from immiscible_policy.cli import run
from immiscible_policy.commands.train_policy import group_help, help_lines
from immiscible_policy.recipes.image_config import SCHEMA
from immiscible_policy.training.options import config_dir, group_choices

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
    if any(word in ("-h", "--help", "help") for word in words):
        print(_help())
        return
    config = SCHEMA.compose(words)
    from immiscible_policy.recipes.image import ImageRecipe
    from immiscible_policy.training.driver import train_run

    train_run(ImageRecipe, config)


def _help() -> str:
    models, scales = group_choices("model"), group_choices("image_scale")
    noises = group_choices("noise")
    settings = (config_dir() / "image.yaml").read_text().split("${image_scale}\n", 1)[1].strip()
    sections = {
        "groups": [group_help(SCHEMA.groups)],
        "options of the model": [_block(f"model={name}", f"model/{name}") for name in models],
        "options of the noise": [_block(f"noise={name}", f"noise/{name}") for name in noises],
        "options that the scale sets": [_block(f"scale={scale}", f"image_scale/{scale}") for scale in scales],
        "options that scale and model set": [
            f"  scale={scale} model={model}: {_values(f'model_scale/{model}_{scale}')}"
            for scale in scales
            for model in models
        ],
        "options and their defaults": [f"  {line}".rstrip() for line in settings.splitlines()],
    }
    return "\n\n".join([USAGE.rstrip(), *("\n".join([f"{title}:", *lines]) for title, lines in sections.items())])


def _block(title: str, file: str) -> str:
    """A title, and below it the options in a configuration file that take effect with images."""
    lines = help_lines(config_dir() / f"{file}.yaml")
    return "\n    ".join([f"  {title}", *(line for line in lines if not line.startswith(("model:", "potentials:")))])


def _values(file: str) -> str:
    """The options in a configuration file in one line, without what it says of them."""
    return ", ".join(line.split("#")[0].strip() for line in help_lines(config_dir() / f"{file}.yaml"))
