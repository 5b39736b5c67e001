"""What every experiment of the laboratory is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from immiscible_policy.cli import Option


class Findings(NamedTuple):
    """What an experiment found.

    Attributes:
        figures: Every measured number, as JSON values.
        text: Markdown: definitions, a table with the published figures beside ours, what differs and why.
        picture: The plot.
    """

    figures: dict[str, Any]
    text: str
    picture: Figure


@dataclass(frozen=True)
class Experiment:
    """An experiment as the command line sees it; each module of this package that has one names it `EXPERIMENT`.

    Attributes:
        usage: What it measures, how, and the source in the papers, with example commands.
        options: Its own words besides `out=`.
        measure: Runs it; must raise ValueError for bad options before any work starts.
    """

    usage: str
    measure: Callable[[dict[str, Any]], Findings]
    options: dict[str, Option] = field(default_factory=dict)
