"""`python train_policy.py`: words become options here; `commands.training` trains.

Only what reading options needs is imported at the top, so that a mistyped word is answered at once.
"""

from __future__ import annotations

from immiscible_policy.cli import asks_for_help, program
from immiscible_policy.commands.train_grid import read_grid, train_grid
from immiscible_policy.commands.training import train
from immiscible_policy.recipes.robot_config import SCHEMA

USAGE = """\
usage: python train_policy.py [KEY=VALUE ...]

Train a policy on a task's demonstrations, evaluate every checkpoint, summarise all seeds.

  python train_policy.py noise=knn k=2 seed=0..2
  python train_policy.py noise=linear data=PATH out=runs/mine steps=2000 episodes=20
  python train_policy.py experiment=table2 data=PATH out=runs/table2   (a grid: a run for each arm, resumed)
  python train_policy.py experiment=table2 seed=0..249 data=PATH launcher=ray cluster=auto   (docs/clusters.md)
"""


@program
def main(words: list[str]) -> None:
    """Train a policy, or every run of a grid."""
    grid = None if asks_for_help(words) else read_grid(words)
    if grid is None:
        train(words, SCHEMA, USAGE, "immiscible_policy.recipes.robot:RobotRecipe")
    else:
        train_grid(grid)
