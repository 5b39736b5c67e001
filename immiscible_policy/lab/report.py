"""What the reports of the laboratory share: Markdown tables and panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immiscible_policy.palette import GREY


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right.

    Raises:
        ValueError: If a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def panels(columns: int, rows: int = 1, *, title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of plain panels, left to right and down, under one line of text."""
    figure = Figure(figsize=(4.9 * columns, 3.9 * rows), dpi=130, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
        each.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        each.set_axisbelow(True)
    figure.suptitle(title, fontsize=10, color=GREY, x=0.01, ha="left")
    return figure, axes
