"""Pictures: generated images side by side, originals beside what models made of them, and distances over training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from immiscible_policy.image.evaluation.curves import Reached
from immiscible_policy.palette import GREY, colours, panels, readable
from immiscible_policy.results.plots import Curve, draw_curves
from immiscible_policy.results.report.charts import HEIGHT, WIDTH
from immiscible_policy.results.video import tile as arrange
from immiscible_policy.store.atomic import write_atomically

ENLARGED = 64  # Side that small images are enlarged to, by repeating pixels


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, 3, S, S), uint8, row by row as one (H, W, 3), one white pixel apart."""
    framed = pad(images, (0, 1, 0, 1), value=255).permute(0, 2, 3, 1)
    return arrange(framed.cpu().numpy(), columns)[:-1, :-1]


def save_tiles(path: Path, images: Tensor) -> None:
    """Write images (N, 3, S, S), uint8, eight in a row, as a PNG; small ones enlarged by repeating their pixels."""
    factor = max(1, ENLARGED // images.shape[-1])
    larger = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    buffer = io.BytesIO()
    Image.fromarray(tile(larger, 8)).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def samples_figure(columns: Mapping[str, Tensor], title: str) -> Figure:
    """Images (N, 3, S, S), uint8, in named columns, a row per image, as Figure 9 of arXiv 2505.18521."""
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
    """Distances of several runs against training steps, and how much sooner each seed was than the first run's.

    Left: thick the mean over seeds, its 95% interval as a band, thin each seed. Right, where runs are compared: the
    speed-up of every training seed to the best distance that both reach.
    """
    figure, axes = panels(2 if reached else 1, width=4.9 if reached else 6.0, height=4.2)
    draw_distances(axes[0], curves, floor)
    axes[0].legend(fontsize=8, frameon=False)
    if reached:
        _draw_speedups(axes[1], reached, colours(curves))
        axes[1].set_title("speed-up to the best distance that both reach, per seed", fontsize=10, loc="left")
    seeds = ", ".join(f"{label}: {len(curve.seeds)}" for label, curve in curves.items())
    figure.suptitle(f"{title}. Seeds: {seeds}", fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


def distance_figure(curves: Mapping[str, Curve], floor: float | None, across: str | None = None) -> Figure:
    """Distances of several runs against training steps, small, for a page that has its own legend.

    Or against what `across` says, such as network calls, on a log scale with every number marked.
    """
    figure, (axes,) = panels(1, width=WIDTH / 72, height=HEIGHT / 72)
    draw_distances(axes, curves, floor)
    axes.set_title("", loc="left")
    if across:
        mark_calls(axes, next(iter(curves.values())).steps, across)
    return figure


def mark_calls(axes: Axes, counts: Sequence[int], across: str = "network calls") -> None:
    """Numbers of network calls on a log scale, every one of them marked."""
    axes.set_xscale("log")
    axes.set_xlim(0.85 * counts[0], 1.18 * counts[-1])
    axes.set_xticks(counts, [f"{count}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel(across, fontsize=9)


def draw_distances(axes: Axes, curves: Mapping[str, Curve], floor: float | None) -> None:
    """Distances on a log scale, with that of real images and the first run's best."""
    colour, first = colours(curves), next(iter(curves))
    smallest = min(curve.seeds.min() for curve in curves.values())
    draw_curves(axes, curves, colour, low=smallest / 2)  # an interval may reach below 0
    if floor is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle="--", label="real images")
    best = min(mean.estimate for mean in curves[first].means)
    axes.axhline(best, color=colour[first], linewidth=1, linestyle=":", label=f"best mean of {readable(first)}")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else tuple(range(1, 10))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("squared distance to real images (log scale)", fontsize=10, loc="left")


def _draw_speedups(axes: Axes, reached: Mapping[str, Sequence[Reached]], colour: Mapping[str, str]) -> None:
    for place, (label, seeds) in enumerate(reached.items()):
        ratios = [seed.ratio for seed in seeds]
        axes.plot([place] * len(ratios), ratios, "o", color=colour[label], markersize=7, alpha=0.7)
        if whole := sum(seed.whole for seed in seeds):
            note = f"{whole} of {len(seeds)} seeds get as good"
            axes.annotate(note, (place, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=GREY)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set_xlim(-0.6, len(reached) - 0.4)
    axes.set_ylim(0, 1.05 * max(axes.get_ylim()[1], 1.0))
    axes.set_xticks(range(len(reached)), list(map(readable, reached)))
    axes.set_ylabel("steps of the first / steps needed (1: no sooner)", fontsize=8)
