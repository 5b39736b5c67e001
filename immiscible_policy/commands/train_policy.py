"""`python train_policy.py`: words become options here; `commands.training` trains.

Only what reading options needs is imported at the top, so that a mistyped word is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from immiscible_policy.cli import parse_range, program
from immiscible_policy.commands.train_grid import Grid
from immiscible_policy.commands.training import train
from immiscible_policy.recipes.robot_config import SCHEMA
from immiscible_policy.training.options import epoch_steps, off_protocol

if TYPE_CHECKING:
    from immiscible_policy.recipes.robot import RobotRecipe

RECIPE = "immiscible_policy.recipes.robot:RobotRecipe"
USAGE = """\
usage: python train_policy.py [KEY=VALUE ...]

Train a policy on a task's demonstrations, evaluate every checkpoint, summarise all seeds.

  python train_policy.py noise=knn k=2 seed=0..2
  python train_policy.py noise=linear data=PATH out=runs/mine steps=2000 episodes=20
  python train_policy.py task=none data=PATH obs=qpos,front   (no simulator: held-out episodes are scored)
  python train_policy.py experiment=table2 data=PATH out=runs/table2   (a grid: a run for each arm, resumed)
  python train_policy.py experiment=table2 seed=0..249 data=PATH launcher=ray cluster=auto   (docs/clusters.md)
"""


@program
def main(words: list[str]) -> None:
    """Train a policy, or every run of a grid."""
    train(words, SCHEMA, USAGE, RECIPE, policy_table)


def policy_table(grid: Grid, recipes: Mapping[str, RobotRecipe]) -> str:
    """Write the table of a grid of policies and return it; published figures stand in it if the protocol is theirs."""
    from immiscible_policy.results.grid import write_grid

    recipe = next(iter(recipes.values()))
    seeds, others = parse_range("seed", recipe.config.seed), departures(grid.protocol, recipe)
    published = {} if others else grid.published
    written = write_grid(grid.out, grid.name, list(recipes), seeds, published, grid.contrasts)
    left_out = f"the published figures are of another protocol and left out: {'; '.join(others)}\n\n"
    return f"{left_out if others else ''}{written}"


def departures(protocol: Mapping[str, Any], recipe: RobotRecipe) -> list[str]:
    """What a run does otherwise than a protocol says, such as `solver=ddim (published: ddpm)`.

    A protocol has options, the `data` by the hashes of their content, and the length in `epochs`.
    """
    config = recipe.config
    epochs = config.steps / epoch_steps(len(recipe.loaded.training), config.batch_size)
    return off_protocol(config.identity | {"data": recipe.data["content_hash"], "epochs": epochs}, protocol)
