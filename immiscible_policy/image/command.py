"""`python train_image.py`: words become options here; `training.session` does the work."""

from __future__ import annotations

from immiscible_policy.cli import run
from immiscible_policy.image.config import SCHEMA
from immiscible_policy.training.command import group_help, help_lines
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
    from immiscible_policy.image.run import TRAINING
    from immiscible_policy.training.session import train_and_summarise

    train_and_summarise(TRAINING, config)


def _help() -> str:
    models = "\n".join(
        "\n    ".join([f"  model={name}", *help_lines(config_dir() / "model" / f"{name}.yaml")])
        for name in group_choices("model")
    )
    sizes = "\n".join(
        f"  model={model} scale={scale}: "
        + ", ".join(help_lines(config_dir() / "model_scale" / f"{model}_{scale}.yaml"))
        for model in group_choices("model")
        for scale in group_choices("image_scale")
    )
    settings = (config_dir() / "image.yaml").read_text().split("${image_scale}\n", 1)[1].strip()
    sections = {"groups": group_help(SCHEMA.groups), "options of the model": models, "sizes": sizes}
    texts = [USAGE, *(f"{title}:\n{text}\n" for title, text in sections.items()), "options and their defaults:"]
    return "\n".join([*texts, *(f"  {line}".rstrip() for line in settings.splitlines())])
