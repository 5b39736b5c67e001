"""What distinguishes one kind of training from another: policies from images.

`session` runs any of them: it checks the directory, plans, trains every seed, summarises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from immiscible_policy.training.options import Config, Schema

Report = Callable[[dict[str, Any]], None]
"""Receives what happens, as JSON values with an `event`: `started`, `metrics`, `evaluated`, `finished`."""


class Parts(Protocol):
    """Everything a run needs, built and checked before anything is written."""

    @property
    def data_hash(self) -> str:
        """Content hash of the data."""
        ...


P = TypeVar("P", bound=Parts)


@dataclass(frozen=True)
class Training(Generic[Config, P]):
    """A kind of training.

    Attributes:
        module: Name of the module that holds this object as TRAINING: a worker process imports it.
        schema: Reads its options.
        build: Builds everything that could be wrong, and writes nothing; raises ValueError in one line.
        train_seed: Trains one seed, given options, parts, run directory, seed and where to report.
        data: What the run directory's provenance says of the data: `path`, `content_hash` and more.
        plan: Lines that say what will happen, for people.
        summarise: Writes the run's `summary.json` from what its seeds wrote, and returns what to print.
    """

    module: str
    schema: Schema[Config]
    build: Callable[[Config], P]
    train_seed: Callable[[Config, P, Path, int, Report], None]
    data: Callable[[Config, P], dict[str, Any]]
    plan: Callable[[Config, P], list[str]]
    summarise: Callable[[Path], str]


def find_training(module: str) -> Training[Any, Any]:
    """The training that a module of this package holds."""
    return import_module(module).TRAINING
