"""The arms of a grid against its first arm: one model of all of them, Holm's correction, and what could be detected.

All arms have the same training seeds s and starts t. Of an arm's means over starts m_as the model is

    m_as = mu_a + seed_s + rest_as,    one variance of the rest for all arms,

so A arms and S seeds estimate it with (A - 1)(S - 1) degrees of freedom, where each difference by itself has S - 1:
with three seeds and twelve arms the quantile of t is 2.07 and not 4.30. As in `statistics`, the half-width of a
difference adds the source of the starts in quadrature:

    half(level)^2 = t((A - 1)(S - 1))^2 2 var_rest / S + t(N - 1)^2 var_start / N.

With two arms this is the paired interval of `statistics`. The p-value is 1 - level at which the interval ends at 0.
Holm (1979) corrects it for the number of contrasts. `detectable` is the true difference that excludes 0 with a
probability of 80%: the half-width, and the same root with quantiles of t at 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import optimize, special

from immiscible_policy.evaluation.statistics import (
    LEVEL,
    POWER,
    ROUNDING,
    Array,
    Interval,
    components,
    difference_arms,
    interval,
)

Name = TypeVar("Name")


@dataclass(frozen=True)
class Contrast:
    """The difference of an arm from the first."""

    interval: Interval
    p: float  # two-sided
    p_holm: float  # corrected for the number of contrasts
    detectable: float  # smallest true difference that is detected with a probability of 80%


def contrasts(
    arms: Mapping[str, Array],
    first: str,
    named: list[str] | None = None,
    *,
    proportion: bool = False,
    count: int = 0,
) -> dict[str, Contrast]:
    """Compare arms with the first; scores are (seeds, starts), with the same seeds and starts in every arm.

    All arms estimate the variance; Holm's correction counts those `named`, or all but the first, and where `count` is
    larger, that many: contrasts were planned whose arms are not there yet. A difference of proportions that is the same
    everywhere has the interval of `statistics.interval`; `detectable` is 0 there. The p of a difference that nowhere
    varies is NaN and does not count; of one seed and one start there is no interval.

    Raises:
        ValueError: If the scores differ in shape.
    """
    names = [arm for arm in arms if arm != first] if named is None else named
    n_seeds, n_starts = arms[first].shape
    means = np.stack([scores.mean(1) for scores in arms.values()])  # (A, S)
    degrees = (len(arms) - 1) * (n_seeds - 1)
    rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    variance = 2 * float(np.sum(rest**2)) / degrees / n_seeds if degrees else 0.0
    variance = 0.0 if variance < ROUNDING * float(np.square(means).max()) else variance

    differences = {arm: difference_arms(arms[arm], arms[first], same_seeds=True) for arm in names}
    widths = {}
    for arm, difference in differences.items():
        starts = components(difference).starts / n_starts if n_starts > 1 else 0.0
        widths[arm] = [(degrees, variance), (n_starts - 1, starts)]
    estimates = {arm: float(np.mean(difference)) for arm, difference in differences.items()}
    p = {arm: _p_value(estimates[arm], widths[arm]) for arm in names}
    corrected = holm(p, count)
    varied = [name for name, varies in (("seeds", n_seeds > 1), ("starts", n_starts > 1)) if varies]
    results = {}
    for arm in names:
        half = _half(widths[arm], LEVEL)
        least = half + _root(widths[arm], POWER)
        if not varied:
            half = math.nan
        ends = Interval(estimates[arm], estimates[arm] - half, estimates[arm] + half, " and ".join(varied) or "nothing")
        if proportion and not half:
            ends = interval(differences[arm], proportion)
        results[arm] = Contrast(ends, p[arm], corrected[arm], least)
    return results


Widths = list[tuple[int, float]]
"""Degrees of freedom and variance of each source of a difference."""


def _half(widths: Widths, level: float) -> float:
    """Half-width at a level."""
    return _root(widths, (1 + level) / 2)


def _root(widths: Widths, quantile: float) -> float:
    """The sources' standard deviations, each times its quantile of t, added in quadrature."""
    squares = (special.stdtrit(degrees, quantile) ** 2 * variance for degrees, variance in widths if variance)
    return math.sqrt(sum(squares))


def _p_value(estimate: float, widths: Widths) -> float:
    """1 - level at which the interval ends at 0; 0 below 1e-15; NaN for a difference that nowhere varies."""
    if estimate and not any(variance for _, variance in widths):
        return math.nan
    if not estimate or _half(widths, 1 - 1e-15) < abs(estimate):
        return float(not estimate)
    return float(10 ** optimize.brentq(lambda power: _half(widths, 1 - 10**power) - abs(estimate), -15, 0))


def holm(p: Mapping[Name, float], count: int = 0) -> dict[Name, float]:
    """Values of p corrected for their number, or for a larger `count` of which these are some (Holm, 1979).

    The smallest is multiplied by their number, the next by one less, ..., none below its predecessor. NaN stays NaN and
    does not count.
    """
    known = {arm: value for arm, value in p.items() if not math.isnan(value)}
    tests = len(known) + max(0, count - len(p))
    corrected, floor = dict.fromkeys(p, math.nan), 0.0
    for place, (arm, value) in enumerate(sorted(known.items(), key=lambda entry: entry[1])):
        floor = max(floor, min(1.0, (tests - place) * value))
        corrected[arm] = floor
    return corrected
