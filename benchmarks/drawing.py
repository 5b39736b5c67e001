"""What the pictures of the benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from immiscible_policy.lab.program import log2


def log_axes(axes: Axes, at: Sequence[int]) -> None:
    """Logarithmic axes with plain numbers, the horizontal one marked where it was measured."""
    log2(axes, at)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
