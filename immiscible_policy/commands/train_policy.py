"""`python train_policy.py`: words become options here; `training.driver` does the work.

Only what reading options needs is imported at the top, so that a mistyped word is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from immiscible_policy.cli import run
from immiscible_policy.commands.train_grid import read_grid, train_grid
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.training.options import config_dir, group_choices

USAGE = """\
usage: python train_policy.py [KEY=VALUE ...]

Train a diffusion policy on PushT demonstrations, evaluate every checkpoint, summarise all seeds.

  python train_policy.py noise=knn k=2 seed=0..2
  python train_policy.py noise=linear data=PATH out=runs/mine steps=2000 episodes=20
  python train_policy.py noise=knn out=runs/mine resume=true
  python train_policy.py experiment=table2 data=PATH out=runs/table2   (a grid: a run for each arm, resumed)
  python train_policy.py experiment=when arms=vanilla,c2ot data=PATH out=runs/when   (some of a grid's arms)
  python train_policy.py experiment=table2 seed=0..249 data=PATH launcher=ray cluster=auto   (docs/clusters.md)
  python train_policy.py experiment=debug dry_run=true
"""


def main() -> None:
    """Console entry point."""
    run(_main)


def _main(words: list[str]) -> None:
    if any(word in ("-h", "--help", "help") for word in words):
        print(_help())
        return
    grid = read_grid(words)
    if grid is not None:
        train_grid(grid)
        return
    config = compose_config(words)
    from immiscible_policy.recipes.robot import RobotRecipe
    from immiscible_policy.training.driver import train_run

    train_run(RobotRecipe, config)


def _help() -> str:
    groups = group_help({group: group for group in ("noise", "obs", "scale", "task", "experiment")})
    noise = "\n".join(
        "\n    ".join([f"  noise={name}", *help_lines(config_dir() / "noise" / f"{name}.yaml")])
        for name in group_choices("noise")
    )
    sizes = "\n".join(
        f"  scale={scale}: {', '.join(help_lines(config_dir() / 'scale' / f'{scale}.yaml'))}"
        for scale in ("cpu", "paper")
    )
    settings = (config_dir() / "train.yaml").read_text().split("- experiment: null\n", 1)[1].strip()
    sections = {"groups": groups, "options of the noise": noise, "options that the scale sets": sizes}
    texts = [USAGE, *(f"{title}:\n{text}\n" for title, text in sections.items()), "options and their defaults:"]
    return "\n".join([*texts, *(f"  {line}".rstrip() for line in settings.splitlines())])


def group_help(groups: Mapping[str, str]) -> str:
    """The choices of some words, given the directories that hold them."""
    return "\n".join(f"  {word}={'|'.join(group_choices(directory))}" for word, directory in groups.items())


def help_lines(path: Path) -> list[str]:
    """The options in a configuration file, with what it says of them."""
    return [line for line in path.read_text().splitlines() if not line.startswith(("name:", "scale:", "#"))]
