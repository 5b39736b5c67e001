"""Pictures of evaluated runs: scores against training steps, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immiscible_policy.evaluation.scores import Scores
from immiscible_policy.evaluation.statistics import Array, Interval, mean_interval
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.results.interval import text

LABELS = {
    "coverage": "max coverage of the goal (share)",
    "reward": "max reward, clip(coverage / 0.95)",
    "success": "success rate (coverage > 0.95)",
    "final_coverage": "final coverage of the goal (share)",
}

Runs = Mapping[str, Mapping[int, Scores]]


def learning_curves(runs: Runs, metrics: Sequence[str]) -> Figure:
    """Scores of several runs against training steps, one panel per metric.

    Thick: mean over seeds and starts. Band: its 95 % interval. Thin: each training seed.

    Args:
        runs: Scores per training seed (as `evaluation.scores` arranges them) of each run, by label.
        metrics: Names of metrics.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no run, more than there are colours, or a run whose seeds share no checkpoint.
    """
    figure = _figure(len(metrics))
    for axes, metric in zip(figure.axes, metrics, strict=True):
        draw_curves(axes, runs, metric)
    figure.suptitle(_counts(runs), fontsize=10, color=GREY, x=0.01, ha="left")
    return figure


def comparison_figure(runs: Runs, differences: Mapping[str, Interval], metrics: Sequence[str]) -> Figure:
    """Learning curves of two runs, and the differences between them.

    Args:
        runs: As `learning_curves`.
        differences: Interval of A - B, by what is compared.
        metrics: Names of at most two metrics.

    Returns:
        The figure.
    """
    figure = _figure(len(metrics) + 1)
    for axes, metric in zip(figure.axes, metrics, strict=False):
        draw_curves(axes, runs, metric)
    draw_differences(figure.axes[-1], differences, " - ".join(runs))
    figure.suptitle(_counts(runs), fontsize=10, color=GREY, x=0.01, ha="left")
    return figure


def arms_figure(
    seeds: Mapping[str, Sequence[float]],
    scores: Mapping[str, Interval],
    differences: Mapping[str, Interval],
    title: str,
    first: str,
) -> Figure:
    """Many runs below each other: their scores, and their differences from the first.

    Args:
        seeds: Each run's score of every training seed.
        scores: Each run's score with its interval.
        differences: Of each other run from the first, paired.
        title: What is scored.
        first: The first run's name.

    Returns:
        The figure: dots are seeds, bars 95 % intervals, grey where they hold 0.
    """
    figure = Figure(figsize=(10.5, 0.3 * len(scores) + 1.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvline(0, color=GREY, linewidth=1)
    for height, (name, score) in enumerate(reversed(list(scores.items()))):
        left.plot([score.low, score.high], [height, height], color=COLOURS[0], linewidth=1.6)
        left.scatter(seeds[name], [height] * len(seeds[name]), s=14, color=COLOURS[0], alpha=0.6, linewidths=0)
        if name in differences:
            found = differences[name]
            colour = "#000000" if found.excludes_zero else "#999999"
            right.plot([found.low, found.high], [height, height], color=colour, linewidth=1.6)
            right.plot([found.estimate], [height], marker="o", markersize=4, color=colour)
    for axes, label in ((left, title), (right, f"less {first}, paired (grey: the interval holds 0)")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.set_title(label, fontsize=9, loc="left")
    left.set_yticks(range(len(scores)), list(reversed(list(scores))))
    left.set_xlim(0, 1)
    return figure


def draw_curves(axes: Axes, runs: Runs, metric: str) -> None:
    """Draw one metric of several runs against training steps.

    Args:
        axes: Where to draw.
        runs: As `learning_curves`.
        metric: Its name.

    Raises:
        ValueError: As `learning_curves`.
    """
    if not 0 < len(runs) <= len(COLOURS):
        raise ValueError(f"{len(runs)} runs cannot be told apart in one picture; draw 1 to {len(COLOURS)}")
    ends = []
    for colour, (label, by_seed) in zip(COLOURS, runs.items(), strict=False):
        steps, table = _common(label, by_seed, metric)
        shown = [mean_interval(table[:, index]) for index in range(len(steps))]
        mean = [each.estimate for each in shown]
        low, high = (np.clip([getattr(each, end) for each in shown], 0, 1) for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(steps, table.mean(2).T, color=colour, linewidth=0.7, alpha=0.55)
        axes.plot(steps, mean, color=colour, linewidth=2.2, marker="o", markersize=3.5)
        ends.append((steps[-1], mean[-1], label, colour))
    _label_ends(axes, ends)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.set_xlabel("training steps")
    axes.set_title(LABELS.get(metric, metric), fontsize=10, loc="left")


def draw_differences(axes: Axes, differences: Mapping[str, Interval], title: str) -> None:
    """Draw differences as points with 95 % intervals about a line at 0.

    Args:
        axes: Where to draw.
        differences: Interval by what is compared, drawn from the top.
        title: What is subtracted from what.
    """
    axes.axvline(0, color=GREY, linewidth=1)
    for height, (name, found) in enumerate(reversed(list(differences.items()))):
        colour = "#000000" if found.excludes_zero else "#888888"
        axes.plot([found.low, found.high], [height, height], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([found.estimate], [height], marker="o", color=colour, markersize=6)
        axes.annotate(
            f"{name}  {text(found, '+.3f')}",
            (0.02, height + 0.22),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    reach = max(1e-3, *(abs(end) for found in differences.values() for end in (found.low, found.high)))
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_ylim(-0.6, len(differences) - 0.3)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference with 95 % interval (grey: holds 0)")
    axes.set_title(title, fontsize=10, loc="left")


def _figure(panels: int) -> Figure:
    figure = Figure(figsize=(4.9 * panels, 3.9), dpi=130, layout="constrained")
    for axes in np.atleast_1d(figure.subplots(1, panels)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    return figure


def _common(label: str, by_seed: Mapping[int, Scores], metric: str) -> tuple[list[int], Array]:
    """Checkpoints that all seeds of a run share, and their scores (seeds, checkpoints, starts)."""
    steps = sorted(set.intersection(*(set(found.steps) for found in by_seed.values()))) if by_seed else []
    if not steps:
        raise ValueError(f"the seeds of {label} share no evaluated checkpoint; there is nothing to draw")
    return steps, np.stack([found.at(steps, found.starts).values[metric] for found in by_seed.values()])


def _label_ends(axes: Axes, ends: Sequence[tuple[int, float, str, str]]) -> None:
    """Name each curve at its right end, at least 0.055 of the axis apart."""
    height = -np.inf
    for step, value, label, colour in sorted(ends, key=lambda end: end[1]):
        height = max(value, height + 0.055)
        axes.annotate(
            label,
            (step, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def _counts(runs: Runs) -> str:
    counts = {}
    for label, by_seed in runs.items():
        n_starts = len(next(iter(by_seed.values())).starts)
        counts[label] = f"{len(by_seed)} seed{'s' * (len(by_seed) > 1)} x {n_starts} starts"
    same = len(counts) > 1 and len(set(counts.values())) == 1
    each = [f"Each: {next(iter(counts.values()))}"] if same else [f"{label}: {n}" for label, n in counts.items()]
    return "; ".join(each) + ". Thick: mean, band: its 95 % interval, thin: each seed"
