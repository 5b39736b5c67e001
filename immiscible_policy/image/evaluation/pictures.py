"""Pictures: generated images side by side, originals beside what models made of them, and distances over training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from immiscible_policy.image.evaluation.curves import Curve, Reached
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.store.atomic import write_atomically

ENLARGED = 64
"""Side that small images are enlarged to, by repeating pixels."""


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, 3, S, S), uint8, row by row as one (H, W, 3), one white pixel apart."""
    height, side = math.ceil(len(images) / columns), images.shape[-1]
    sheet = np.full((height * (side + 1) - 1, columns * (side + 1) - 1, 3), 255, np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = (side + 1) * (number // columns), (side + 1) * (number % columns)
        sheet[top : top + side, left : left + side] = image
    return sheet


def save_tiles(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write images (N, 3, S, S), uint8, side by side as a PNG; small ones enlarged by repeating their pixels."""
    factor = max(1, ENLARGED // images.shape[-1])
    larger = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    buffer = io.BytesIO()
    Image.fromarray(tile(larger, columns)).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def edits_figure(columns: Mapping[str, Tensor], title: str) -> Figure:
    """Originals, what is left of them, and what every model made of it, as Figure 9 of arXiv 2505.18521.

    Args:
        columns: Images (N, 3, S, S), uint8, by what they are; one row per image.
        title: Above all.
    """
    rows = max(map(len, columns.values()))
    figure = Figure(figsize=(1.25 * len(columns) + 0.2, 1.2 * rows + 0.7), dpi=130, layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for axes, image in zip(column, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
    figure.suptitle(title, fontsize=9, color=GREY)
    return figure


def curves_figure(
    curves: Mapping[str, Curve],
    reached: Mapping[str, Sequence[Reached]],
    *,
    title: str,
    floor: float | None,
) -> Figure:
    """Distances of several runs against training steps, and when each seed reached the first run's best.

    Left: thick the mean over seeds, its 95 % interval as a band, thin each seed. Right, where runs are compared: the
    speed-up of every training seed that reached its target.

    Args:
        curves: By run, the first one first.
        reached: Per training seed, of every run but the first.
        title: What the distance is called.
        floor: Distance between real images, or None.

    Raises:
        ValueError: If there are more runs than colours.
    """
    if len(curves) > len(COLOURS):
        raise ValueError(f"{len(curves)} runs cannot be told apart in one picture; draw 1 to {len(COLOURS)}")
    colours = dict(zip(curves, COLOURS, strict=False))
    figure = Figure(figsize=(9.4 if reached else 6.0, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1.7, 1), squeeze=False)[0] if reached else [figure.subplots()]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    _draw_curves(panels[0], curves, colours, floor)
    if reached:
        _draw_speedups(panels[1], reached, colours)
        panels[1].set_title(f"speed-up to the best of {next(iter(curves))}, per seed", fontsize=10, loc="left")
    seeds = ", ".join(f"{label}: {len(curve.values)}" for label, curve in curves.items())
    figure.suptitle(f"{title}. Seeds: {seeds}", fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


def _draw_curves(axes: Axes, curves: Mapping[str, Curve], colours: Mapping[str, str], floor: float | None) -> None:
    for label, curve in curves.items():
        ends = [(found.low, found.high) for found in curve.intervals]
        low, high = np.array(ends).T.clip(min=curve.values.min() / 2)  # an interval may reach below 0
        axes.fill_between(curve.steps, low, high, color=colours[label], alpha=0.13, linewidth=0)
        axes.plot(curve.steps, curve.values.T, color=colours[label], linewidth=0.7, alpha=0.5)
        mean = [found.estimate for found in curve.intervals]
        axes.plot(curve.steps, mean, color=colours[label], linewidth=2.2, marker="o", markersize=3.5, label=label)
    if floor is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle="--", label="real images")
    first = next(iter(curves))
    smallest = min(found.estimate for found in curves[first].intervals)
    axes.axhline(smallest, color=colours[first], linewidth=1, linestyle=":", label=f"best mean of {first}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", which="both", color="#EEEEEE", linewidth=0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("training steps")
    axes.set_title("squared distance to real images (log scale)", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)


def _draw_speedups(axes: Axes, reached: Mapping[str, Sequence[Reached]], colours: Mapping[str, str]) -> None:
    for place, (label, found) in enumerate(reached.items()):
        ratios = [each.ratio for each in found if each.ratio is not None]
        axes.plot([place] * len(ratios), ratios, "o", color=colours[label], markersize=7, alpha=0.7)
        missing = len(found) - len(ratios)
        if missing:
            note = f"{missing} of {len(found)} seeds: not reached"
            axes.annotate(note, (place, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=GREY)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set_xlim(-0.6, len(reached) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(reached)), list(reached))
    axes.set_ylabel("its steps / steps needed (1: no sooner)", fontsize=8)
