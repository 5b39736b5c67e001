"""What the two commands that train have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from immiscible_policy.cli import CommandError, asks_for_help, split_words
from immiscible_policy.commands.train_grid import Grid, read_grid, train_grid
from immiscible_policy.training.options import Schema


def train(
    words: list[str],
    schema: Schema[Any],
    usage: str,
    recipe: str,
    table: Callable[[Grid, Mapping[str, Any]], str],
    check: Callable[[Grid, Mapping[str, Any]], None] = lambda grid, recipes: None,
) -> None:
    """Train the run that words name, or every run of a grid and write its table; `recipe` is a `module:Class`.

    `table` and `check` are `write` and `check` of `train_grid`.
    The recipe is imported once the options are valid, so that a mistyped word is answered at once.
    """
    if asks_for_help(words):
        print(schema.help(usage, words))
        return
    grid = read_grid(words, schema)
    if grid is not None:
        train_grid(grid, resolve_name(recipe), table, check)
        return
    config = schema.compose(words)
    for key, text in split_words(words, schema.synonyms).items():
        if key in config.unused - {"resume", "dry_run"} and getattr(config, key):
            raise CommandError(f"{key}={text}: this training does not use it; leave it out")
    from immiscible_policy.training.driver import train_run

    train_run(resolve_name(recipe), config)
