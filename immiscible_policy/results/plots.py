"""Charts of evaluated runs: scores against training steps, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immiscible_policy.evaluation.scores import Scores, common_steps, curves
from immiscible_policy.evaluation.statistics import Array, Interval, count, mean_interval
from immiscible_policy.palette import BLUE, FAINT, GREY, INK, colours, label_ends, panels, readable
from immiscible_policy.results.formatting import text
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric

REDUCED = {"max": "maximum over the episode", "last": "at the end of the episode", "sum": "sum over the episode"}
"""How a metric's value comes from the steps of an episode; a yes-or-no metric becomes a rate."""

Runs = Mapping[str, Mapping[int, Scores]]
"""Scores per training seed, by the run's label."""


@dataclass(frozen=True)
class Curve:
    """A number against training steps, at the checkpoints that all training seeds of a run share.

    Attributes:
        steps: The checkpoints (C,).
        seeds: The number of each training seed (S, C).
        means: Mean over seeds (and starts) with its interval, per checkpoint (C,).
    """

    steps: list[int]
    seeds: Array
    means: list[Interval]


def score_curve(label: str, scores: Mapping[int, Scores], metric: Metric) -> Curve:
    """One metric of a run against training steps; a ValueError if the seeds share no checkpoint."""
    steps = common_steps(scores) if scores else []
    if not steps:
        raise ValueError(f"the seeds of {label} share no evaluated checkpoint; evaluate them at the same steps")
    values = curves(scores, metric.name, steps)  # (S, C, N)
    means = [mean_interval(values[:, index], metric.is_proportion) for index in range(len(steps))]
    return Curve(steps, values.mean(2), means)


def selector_of(run: RunDirectory) -> str:
    """Name of the selector that a run was trained with; empty where its options do not say."""
    return str(run.config.get("noise", {}).get("name", ""))


def title_of(metric: Metric) -> str:
    """A metric as the title of a chart."""
    name = metric.name.replace("_", " ")
    return f"{name} rate" if metric.reduce == "any" else f"{name} ({REDUCED[metric.reduce]})"


def learning_curves(
    runs: Runs,
    metrics: Sequence[Metric],
    *,
    differences: Mapping[str, Interval] | None = None,
    selectors: Mapping[str, str] | None = None,
) -> Figure:
    """Scores of several runs against training steps, one panel per metric.

    The last panel shows `differences` of two runs, intervals by what is compared. The selector of a run gives its
    colour; by default the label names it.

    Raises ValueError if there is no run, more than there are colours, or a run whose seeds share no checkpoint.
    """
    if not runs:
        raise ValueError("0 runs: there is nothing to draw")
    colour = colours(runs, selectors)
    figure, axes = panels(len(metrics) + (differences is not None), title=_counts(runs))
    for panel, metric in zip(axes, metrics, strict=False):
        drawn = {label: score_curve(label, scores, metric) for label, scores in runs.items()}
        draw_curves(panel, drawn, colour, low=metric.low, high=metric.high)
        label_ends(
            panel, {label: (curve.steps[-1], curve.means[-1].estimate) for label, curve in drawn.items()}, colour
        )
        panel.set_title(title_of(metric), fontsize=10, loc="left")
    if differences is not None:
        draw_differences(axes[-1], differences, " - ".join(map(readable, runs)))
    return figure


def arms_figure(
    seeds: Mapping[str, Sequence[float]],
    scores: Mapping[str, Interval],
    differences: Mapping[str, Interval],
    metric: Metric,
    first: str,
) -> Figure:
    """Many runs below each other: their scores in a metric, and paired differences of the others from the first.

    Dots are the scores of training seeds, bars 95% intervals.
    """
    figure, (left, right) = panels(2, width=5.25, height=0.3 * len(scores) + 1.2, grid="x")
    right.axvline(0, color=GREY, linewidth=1)
    for height, (name, score) in enumerate(reversed(list(scores.items()))):
        left.plot([score.low, score.high], [height, height], color=BLUE, linewidth=1.6)
        left.scatter(seeds[name], [height] * len(seeds[name]), s=14, color=BLUE, alpha=0.6, linewidths=0)
        if name in differences:
            _draw_interval(right, differences[name], height, width=1.6, marker=4)
    left.set_title(f"{title_of(metric)}, last checkpoint", fontsize=9, loc="left")
    right.set_title(f"run - {readable(first)}, paired (grey: the interval contains 0)", fontsize=9, loc="left")
    for panel, names in ((left, list(scores)[::-1]), (right, list[str]())):
        panel.set_yticks(range(len(names)), map(readable, names))
        panel.set_ylim(-0.6, len(scores) - 0.4)
    if np.isfinite([metric.low, metric.high]).all():
        left.set_xlim(metric.low, metric.high)
    return figure


def draw_curves(
    axes: Axes,
    curves: Mapping[str, Curve],
    colour: Mapping[str, str],
    *,
    low: float = -np.inf,
    high: float = np.inf,
    dashes: Mapping[str, object] | None = None,
) -> None:
    """Draw curves by label. Thick with dots: the mean. Band: its 95% interval. Thin: each training seed.

    Bands are cut to the values' range from low to high; dashes are line styles of the means, solid by default.
    """
    for label, curve in curves.items():
        ends = np.array([(mean.low, mean.high) for mean in curve.means]).T.clip(low, high)
        axes.fill_between(curve.steps, *ends, color=colour[label], alpha=0.14, linewidth=0)
        axes.plot(curve.steps, curve.seeds.T, color=colour[label], linewidth=0.7, alpha=0.55)
        estimates = [mean.estimate for mean in curve.means]
        line = (dashes or {}).get(label, "-")
        axes.plot(curve.steps, estimates, color=colour[label], linewidth=2.2, linestyle=line, label=readable(label))  # type: ignore[arg-type]
        for step, mean in zip(curve.steps, curve.means, strict=True):
            tip = f"{label}, step {step:,}: {text(mean)}"
            axes.plot([step], [mean.estimate], "o", color=colour[label], markersize=3.5, gid=f"tip {tip}")
    axes.set_xlim(left=0)
    axes.set_xlabel("training steps", fontsize=9)
    if np.isfinite([low, high]).all():
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))


def draw_differences(axes: Axes, differences: Mapping[str, Interval], title: str) -> None:
    """Draw differences, by what is compared, as points with 95% intervals about a line at 0, from the top."""
    axes.axvline(0, color=GREY, linewidth=1)
    for height, (name, difference) in enumerate(reversed(list(differences.items()))):
        _draw_interval(axes, difference, height, width=2, marker=6)
        label, box = f"{name}  {text(difference, '+.3f')}", {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(label, (0.02, height + 0.22), xycoords=("axes fraction", "data"), fontsize=8, bbox=box)
    ends = [abs(end) for interval in differences.values() for end in (interval.low, interval.high)]
    reach = max([1e-3, *(end for end in ends if np.isfinite(end))])
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_ylim(-0.6, len(differences) - 0.3)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference with 95% interval (grey: contains 0)")
    axes.set_title(title, fontsize=10, loc="left")


def _draw_interval(axes: Axes, interval: Interval, height: float, *, width: float, marker: float) -> None:
    colour = INK if interval.excludes_zero else FAINT
    axes.plot([interval.low, interval.high], [height] * 2, color=colour, linewidth=width, solid_capstyle="butt")
    axes.plot([interval.estimate], [height], marker="o", markersize=marker, color=colour)


def _counts(runs: Runs) -> str:
    """How many seeds and starts the curves stand for, and how to read them."""
    counts = {
        label: f"{count(len(scores), 'seed')} x {count(len(next(iter(scores.values())).starts), 'start')}"
        for label, scores in runs.items()
    }
    if len(counts) > 1 and len(set(counts.values())) == 1:
        counts = {"Each": next(iter(counts.values()))}
    sizes = "; ".join(f"{label}: {size}" for label, size in counts.items())
    return f"{sizes}. Thick: mean, band: its 95% interval, thin: each seed"
