"""What the two commands that train have in common."""

from __future__ import annotations

from pkgutil import resolve_name

from immiscible_policy.cli import asks_for_help
from immiscible_policy.training.options import Schema


def train(words: list[str], schema: Schema, usage: str, recipe: str) -> None:
    """Train the run that words name; `recipe` is the `module:Class` of its recipe.

    The recipe is imported once the options are valid, so that a mistyped word is answered at once.
    """
    if asks_for_help(words):
        print(schema.help(usage, words))
        return
    config = schema.compose(words)
    from immiscible_policy.training.driver import train_run

    train_run(resolve_name(recipe), config)
