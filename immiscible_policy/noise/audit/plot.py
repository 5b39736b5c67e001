"""The picture of a noise audit; importing it loads matplotlib, which the selectors themselves do not need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from immiscible_policy.palette import BASELINE, BLUE, INK, panels

if TYPE_CHECKING:
    from immiscible_policy.noise.audit.measure import Audit

PLAIN, SELECTED, LAW = BASELINE, BLUE, INK
BINS = 48
MOST_NUMBERS = 500_000
"""A histogram shows no more when it is made of more numbers."""


def audit_figure(audit: Audit) -> Figure:
    """Draw an audit: distances, marginal density, norms, and the variance left in the training target."""
    pairs = audit.batches * audit.batch_size
    counts = f"{pairs:,} pairs in {audit.batches} batches of {audit.batch_size}, {audit.dims:,} numbers each"
    figure, grid = panels(2, 2, title=counts, width=5.2, height=3.7)
    for axes, draw in zip(grid, (_distances, _marginal, _norms, _target), strict=True):
        title, label = draw(axes, audit)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _distances(axes: Axes, audit: Audit) -> tuple[str, str]:
    plain, selected = (distances.flatten().cpu().numpy() for distances in audit.pairs.distances())
    _histograms(axes, {"plain noise": (plain, PLAIN), "selected": (selected, SELECTED)})
    change, (low, high) = audit.distance.percent, audit.distance.interval
    title = f"Distance to the sample: {change:+.2f}% [{low:+.2f}, {high:+.2f}]"
    return title, "Euclidean distance of sample and noise"


def _marginal(axes: Axes, audit: Audit) -> tuple[str, str]:
    values = audit.pairs.noise.flatten()
    selected = values[:: max(1, len(values) // MOST_NUMBERS)].float().cpu().numpy()
    _histograms(axes, {"selected": (selected, SELECTED)})
    grid = np.linspace(-4.5, 4.5, 300)
    axes.plot(grid, stats.norm.pdf(grid), color=LAW, linewidth=1.4, label="N(0, 1)")
    axes.set_xlim(-4.5, 4.5)
    mean, variance = audit.selected.mean, audit.selected.variance
    title = f"Single numbers: mean {mean:+.3f}, variance {variance:.3f}, KS {audit.ks.statistic:.4f}"
    return title, "one number of the noise"


def _norms(axes: Axes, audit: Audit) -> tuple[str, str]:
    plain, selected = (e.flatten(2).double().square().sum(2).flatten() for e in (audit.pairs.plain, audit.pairs.noise))
    groups = {"plain noise": (plain.cpu().numpy(), PLAIN), "selected": (selected.cpu().numpy(), SELECTED)}
    _histograms(axes, groups)
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], audit.dims)
    grid = np.linspace(low, high, 300)
    axes.plot(grid, stats.chi2.pdf(grid, audit.dims), color=LAW, linewidth=1.4, label=f"chi-squared({audit.dims:,})")
    title = f"Squared norm: {audit.vanilla.squared_norm:,.2f} plain, {audit.selected.squared_norm:,.2f} selected"
    return title, "squared norm of the noise of one sample"


def _target(axes: Axes, audit: Audit) -> tuple[str, str]:
    levels, target = audit.target.alpha_bars, audit.target
    order, places = np.argsort(levels)[::-1], np.arange(len(levels))
    curves = (("plain noise", target.vanilla, PLAIN), ("selected, at most", target.selected, SELECTED))
    for label, values, colour in curves:
        axes.plot(places, np.asarray(values)[order], color=colour, marker="o", linewidth=2, label=label)
    axes.set_xticks(places, [f"{levels[index]:g}" for index in order])
    axes.set_ylabel("variance per number", fontsize=9)
    title = "Variance of the noise given x_t, which no denoiser can remove"
    return title, "alpha_bar (left: little noise, right: much)"


def _histograms(axes: Axes, groups: dict[str, tuple[NDArray[np.float64], str]]) -> None:
    """Densities of several groups of values over common bins: plain noise filled, selected noise outlined."""
    everything = np.concatenate([values for values, _ in groups.values()])
    bins = list(np.linspace(everything.min(), everything.max(), BINS + 1))
    for label, (values, colour) in groups.items():
        style: dict[str, Any] = {"alpha": 0.4} if colour == PLAIN else {"histtype": "step", "linewidth": 1.8}
        axes.hist(values, bins, density=True, color=colour, label=label, **style)
    axes.set_ylabel("density", fontsize=9)
