"""One look for every picture: a selector or a method has the same colour wherever it is drawn.

Each colour has a contrast of at least 3 to white and to the dark page of a report (WCAG 2.2, graphical objects), and
any two of them stay apart for readers with protanopia, deuteranopia and tritanopia (simulated as in Machado et al.
2009; tests/test_palette.py measures both). Grey is the baseline: noise without selection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2257f7", "#cb7505", "#097265", "#af6dbe", "#a54a05", "#1994f7", "#7253b1", "#8e9085")
"""Blue, amber, teal, pink, rust, sky, violet, grey."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)), (0, (1, 2.5)), (0, (9, 3)), "-")
"""The line style that goes with each colour, for readers who see no colour."""
BLUE, AMBER, TEAL, PINK, RUST, SKY, VIOLET, BASELINE = COLOURS
INK, GREY, FAINT, GRID, DARK = "#1a1d21", "#555b63", "#8c9096", "#d5d9de", "#15181c"
"""Text, quiet text and reference lines, what is not significant, grid lines, and the background of a dark page."""
NAMEABLE = len(COLOURS)
"""So many kinds of things can be told apart by colour, and named in a legend."""
HIGHLIGHTED = 2
"""So many paths of each mode are drawn boldly."""
NAMED = {
    "vanilla": BASELINE,
    "knn": BLUE,
    "sign": VIOLET,
    "linear": AMBER,
    "c2ot": TEAL,
    "idp26": PINK,
    "diffusion": RUST,
    "ddim": RUST,
    "flow": SKY,
    "regression": BASELINE,
    "mip": VIOLET,
    "consistency": TEAL,
    "sd": PINK,
    "epsilon": RUST,
    "sample": PINK,
    "v": TEAL,
}
"""Colours of selectors, of methods and image models, and of what a network predicts (the noise is diffusion's own)."""
STRANGERS = (PINK, RUST, SKY, VIOLET, TEAL, AMBER, BLUE, BASELINE)
"""In this order labels without a colour of their own take one; those of the common selectors come last."""


def colours(labels: Iterable[str], selectors: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for every label, no two alike: that of the selector or method it names first, or the next free one.

    What all labels name tells none of them apart, and counts last: `flow_vanilla` beside `flow_knn` is grey.

    Args:
        labels: What is drawn together.
        selectors: The selector or method that each label stands for, where the label does not say it.

    Raises:
        ValueError: If there are more labels than colours.
    """
    names = {label: (selectors or {}).get(label, label) for label in labels}
    if len(names) > len(COLOURS):
        raise ValueError(f"{len(names)} runs are too many for one picture; draw 1 to {len(COLOURS)}")
    kinds = {label: _kinds(name) for label, name in names.items()}
    shared = set.intersection(*map(set, kinds.values())) if len(kinds) > 1 else set()
    taken: dict[str, str] = {}
    for label, own in kinds.items():
        fixed = next((NAMED[kind] for kind in sorted(own, key=shared.__contains__)), None)
        if fixed is not None and fixed not in taken.values():
            taken[label] = fixed
    free = (colour for colour in STRANGERS if colour not in taken.values())
    return {label: taken.get(label) or next(free) for label in names}


def named(label: str) -> str | None:
    """The colour of the selector or method that a label names first; None if it names none."""
    return next((NAMED[kind] for kind in _kinds(label)), None)


def _kinds(label: str) -> list[str]:
    """Selectors and methods that a label names, in order."""
    return [word for word in re.split(r"[^a-z0-9]+", label.lower()) if word in NAMED]


def readable(name: str) -> str:
    """The name of a run or an arm as pictures show it: `knn_k2_late` is `KNN k=2 late`."""
    words = re.sub(r"\bk(\d+)\b", r"k=\1", name.replace("_", " "))
    return re.sub(r"\bknn\b", "KNN", words)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colour: Mapping[str, str]) -> None:
    """Name curves at their right ends (x, y), at least 0.055 of the axis apart, else as near as can be."""
    bottom, top = axes.get_ylim()
    labels = sorted(ends, key=lambda label: ends[label][1])
    levels = 0.055 * (top - bottom) * np.arange(len(labels))
    excess = np.array([ends[label][1] for label in labels]) - levels
    raised = np.maximum.accumulate(excess) + levels
    lowered = np.minimum.accumulate(excess[::-1])[::-1] + levels
    for label, height in zip(labels, (raised + lowered) / 2, strict=True):
        x = ends[label][0]
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(readable(label), (x, height), color=colour[label], fontsize=9, **place)  # type: ignore[arg-type]


def mode_colour(mode: int, kinds: int) -> str:
    """Colour of a mode; the last of the kinds is grey. Of more kinds than colours, several have the same."""
    return BASELINE if mode == kinds - 1 else COLOURS[mode % (NAMEABLE - 1)]


def highlighted(modes: Sequence[int]) -> list[bool]:
    """Which of many paths to draw boldly: the first two of each mode, or the first one where there are many modes.

    All others are drawn faintly: together they show how dense the paths are.
    """
    seen, each = Counter[int](), HIGHLIGHTED if len(set(modes)) <= NAMEABLE else 1
    bold = []
    for mode in modes:
        seen[mode] += 1
        bold.append(seen[mode] <= each and len(seen) <= NAMEABLE)
    return bold


def panels(
    columns: int, rows: int = 1, *, title: str = "", width: float = 4.9, height: float = 3.9, grid: str = "y"
) -> tuple[Figure, list[Axes]]:
    """A figure of plain panels of width x height inches, left to right and down, under one line of text.

    `grid` is as in `style`.
    """
    figure = Figure(figsize=(width * columns, height * rows), dpi=130, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for panel in axes:
        style(panel, grid)
    if title:
        figure.suptitle(title, fontsize=10, color=GREY, x=0.01, ha="left")
    return figure, axes


def style(axes: Axes, grid: str = "y") -> None:
    """Give a panel the common look: two spines, small ticks, a quiet grid (x, y or both) below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
