"""What two handfuls of training runs can and cannot tell: intervals, sign tests, and how much more is needed.

Scores come as an array (seeds, starts): training seed s, rolled out from start t. All seeds use the same
starts, so the two factors are crossed, and the model throughout is

    y_st = mu + seed_s + start_t + rest_st,    variances  var_seed, var_start, var_rest,

whose grand mean over S seeds and N starts has the variance  var_seed / S + var_start / N + var_rest / (S N).

A comparison is the sum of the means of one or two *arms*, each an array (seeds, starts) over the same starts:
`[values]` is a plain mean, `[a - b]` a difference paired by seed and start, `[a, -b]` a difference whose
starts are paired and whose seeds are not. The functions below take arms, so that the three cases are one.

**The interval** adds two half-widths in quadrature, each with the Student quantile of its own source:

    half^2 = t(S - 1)^2 (var_seed / S + var_rest / (S N)) + t(N - 1)^2 var_start / N.

The bracket is estimated by the variance of the seed means over S (two arms: summed, with Welch's degrees of
freedom); var_start by the variance of the start means minus their share of var_rest, never below 0.

**Proportions** (success or not) have Wilson's interval (1927), which lies in [0, 1] and has a width when all episodes
succeed or all fail. With p the mean, it depends on w = z^2 / n alone, n episodes:

    (p + w / 2 +- sqrt(w p (1 - p) + w^2 / 4)) / (1 + w).

With several seeds w = half^2 / (p (1 - p)), so that it is as wide as the interval above where p is far from 0 and 1,
and at least z^2 / (S N), the width for independent episodes. Where nothing varies at all, seeds tell nothing beyond the
starts, and w = z^2 / N.

*Measured* share of simulated experiments whose 95% interval contains the truth (50 starts, normal model, 3,000
experiments each; tests/evaluation/test_statistics.py repeats it):

    standard deviations
    seed  start  rest     3 seeds   5 seeds   10 seeds
    0.05  0      0.02     95.1%    95.3%    95.4%
    0.03  0.03   0.20     95.7%    95.0%    95.4%
    0.03  0.10   0.15     96.7%    96.5%    96.0%
    0.01  0.20   0.10     96.8%    95.6%    95.3%
    0     0.05   0.20     96.6%    96.2%    95.1%
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
POWER = 0.8
Z = float(special.ndtri((1 + LEVEL) / 2))
MOST = 10**6
ROUNDING = 1e-20
"""A variance below this share of the largest squared score is that of equal numbers, rounded."""
TIE = 1e-12
"""A smaller difference of means of scores about 1 is that of equal ones, rounded."""

Array = NDArray[np.float64]
Arms = Sequence[Array]


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        estimate: The sum of the arms' means.
        low: Lower end; NaN where nothing varies that could tell.
        high: Upper end; NaN likewise.
        over: What the interval generalises over: "seeds and starts", "seeds", "starts" or "nothing".
    """

    estimate: float
    low: float
    high: float
    over: str

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    @property
    def meaning(self) -> str:
        """What the interval is for, in words."""
        return MEANINGS[self.over]


MEANINGS = {
    "seeds and starts": "for new training seeds and new starts",
    "seeds": "for new training seeds, conditional on this start",
    "starts": "for new starts, conditional on these runs: other training seeds are not covered",
    "nothing": "one seed and one start: no interval",
}


@dataclass(frozen=True)
class Components:
    """Variance components of arms (module docstring); S = 1 leaves only `starts`, conditional on the runs.

    Attributes:
        seeds: var_seed of each arm; NaN where an arm has one seed.
        rest: var_rest of each arm; 0 where an arm has one seed or one start.
        starts: var_start of the sum of the arms; NaN where there is one start.
    """

    seeds: tuple[float, ...]
    rest: tuple[float, ...]
    starts: float


@dataclass(frozen=True)
class SignTest:
    """Differences above 0, below 0 and equal to 0 (left out), and the two-sided binomial p; 1 where all are ties."""

    wins: int
    losses: int
    ties: int
    p: float


@dataclass(frozen=True)
class Needed:
    """How large an experiment detects a true difference of the observed size with a probability of 80%.

    Attributes:
        starts: Starts for each of the present seeds; infinite where seeds limit the interval, NaN for one start.
        seeds: Seeds per arm on the present starts; infinite where starts limit it, NaN for runs of one seed.
    """

    starts: float
    seeds: float

    @property
    def text(self) -> str:
        """Starts, then seeds."""
        sizes = (self.starts, self.seeds)
        return ", ".join("unknown" if math.isnan(n) else "never" if math.isinf(n) else f"{n:,.0f}" for n in sizes)


def mean_interval(values: Array, proportion: bool = False) -> Interval:
    """Mean of scores (seeds, starts) with its interval; Wilson's (module docstring) where they are a proportion's."""
    plain = interval([values])
    if not proportion or values.size == 1:
        return plain
    (n_seeds, n_starts), p = values.shape, plain.estimate
    least, spread = Z**2 / values.size, p * (1 - p)
    half = (plain.high - plain.low) / 2 if n_seeds > 1 else 0.0
    w = max(least, half**2 / spread) if half and spread else Z**2 / n_starts
    centre, reach = p + w / 2, math.sqrt(w * spread + w**2 / 4)
    return Interval(p, max(0.0, centre - reach) / (1 + w), min(1.0, (centre + reach) / (1 + w)), plain.over)


def difference_arms(a: Array, b: Array, *, same_seeds: bool) -> list[Array]:
    """Arms of the difference A - B of scores (seeds, starts) on the same starts, in the same order.

    `[a - b]` where row i of both comes from the same training seed, otherwise `[a, -b]`.

    Raises:
        ValueError: If the shapes do not allow the pairing.
    """
    if same_seeds and a.shape != b.shape:
        raise ValueError(f"scores {a.shape} and {b.shape} cannot be paired by seed; give equal shapes")
    arms = [a - b] if same_seeds else [a, -b]
    _check(arms)
    return arms


def interval(arms: Arms, proportion: bool = False) -> Interval:
    """Sum of the arms' means with its interval (module docstring).

    Where an arm has a single seed, the interval is t(N - 1) sqrt(var(start means) / N), conditional on the runs. A
    difference of proportions that is the same everywhere has the interval of Agresti and Min (2005) over the starts,
    not one of width 0.

    Raises:
        ValueError: If the arms are not finite, non-empty arrays over the same number of starts.
    """
    _check(arms)
    sizes, n_starts = [len(arm) for arm in arms], arms[0].shape[1]
    estimate = float(sum(arm.mean() for arm in arms))
    half = _half_width(components(arms), sizes, n_starts)
    low, high = estimate - half, estimate + half
    if proportion and not half:
        n = n_starts + 2
        centre = n_starts * estimate / n
        half = Z * math.sqrt(n_starts * estimate**2 + 1 - n * centre**2) / n
        low, high = max(-1.0, centre - half), min(1.0, centre + half)
    varied = [name for name, varies in (("seeds", min(sizes) > 1), ("starts", n_starts > 1)) if varies]
    return Interval(estimate, low, high, " and ".join(varied) or "nothing")


def components(arms: Arms) -> Components:
    """Variance components by the crossed analysis of variance, without interaction replicates.

    With MS_rest the residual mean square of an arm: var_rest = MS_rest, var_seed = var(seed means) -
    MS_rest / N (kept where it is below 0, as var_seed + var_rest / N must be the variance of the seed means),
    and var_start = max(0, var(start means of the sum) - sum over arms of MS_rest / S). Variances that rounding may have
    made are 0. Where all come to 0 although scores vary, as counts of two seeds may, var_start is N times the variance
    that the mean of independent scores has.
    """
    _check(arms)
    n_starts = arms[0].shape[1]
    crossed = all(len(arm) > 1 for arm in arms) and n_starts > 1
    residuals = [arm - arm.mean(1, keepdims=True) - arm.mean(0, keepdims=True) + arm.mean() for arm in arms]
    rest = tuple(
        float(np.sum(left**2) / ((left.shape[0] - 1) * (left.shape[1] - 1))) if crossed else 0.0 for left in residuals
    )
    rounding = ROUNDING * max(float(np.square(arm).max()) for arm in arms)
    rest = tuple(_above(rounding, of_rest) for of_rest in rest)
    of_seeds = [_above(rounding, _variance(arm.mean(1))) for arm in arms]
    seeds = tuple(own - of_rest / n_starts for own, of_rest in zip(of_seeds, rest, strict=True))
    of_starts = _above(rounding, _variance(np.sum([arm.mean(0) for arm in arms], axis=0)))
    share = sum(of_rest / len(arm) for arm, of_rest in zip(arms, rest, strict=True))
    if n_starts == 1:
        return Components(seeds, rest, math.nan)
    starts = max(0.0, of_starts - share)
    if crossed and not (starts or any(of_seeds)):
        starts = n_starts * sum(_above(rounding, _variance(arm.ravel())) / arm.size for arm in arms)
    return Components(seeds, rest, starts)


def sign_test(differences: Array) -> SignTest:
    """Count in how many units A wins and test the count against a fair coin; `differences` are A - B, any shape.

    What rounding can have made of equal means of scores about 1 is a tie.

    The units must be independent for p to hold: training seeds are, pairs of seed and start are not quite.
    n units cannot give a p below 2^(1 - n).
    """
    wins, losses = int(np.sum(differences > TIE)), int(np.sum(differences < -TIE))
    p = min(1.0, 2 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))
    return SignTest(wins, losses, int(np.size(differences)) - wins - losses, p)


def detectable(arms: Arms) -> float:
    """The smallest true difference that an experiment like this one detects with a probability of 80%."""
    return _detectable(components(arms), [len(arm) for arm in arms], arms[0].shape[1])


def episodes_needed(arms: Arms) -> Needed:
    """Smallest experiment that detects a true difference of the observed size with a probability of 80%.

    Solves `detectable` < |estimate| for N at the present S, and for S (equal in all arms) at the present N, with the
    observed variance components. The sizes are at least 2.
    """
    observed = components(arms)
    sizes, n_starts = [len(arm) for arm in arms], arms[0].shape[1]
    distance = abs(float(sum(arm.mean() for arm in arms)))
    starts = math.nan if n_starts == 1 else _smallest(lambda n: _detectable(observed, sizes, n) < distance)
    if min(sizes) == 1:
        return Needed(starts, math.nan)
    return Needed(starts, _smallest(lambda s: _detectable(observed, [s] * len(arms), n_starts) < distance))


def needed_sentence(needed: Needed, excludes_zero: bool, n_seeds: int, n_starts: int) -> str:
    """Say in one or two sentences what `episodes_needed` returned.

    `n_seeds` are the present seeds per arm, the smaller number where the arms differ.
    """
    seeds, starts = count(n_seeds, "seed"), count(n_starts, "start")
    if excludes_zero:
        return f"The interval excludes 0 with {seeds} per arm and {starts}."
    opening = f"To detect a difference of this size with a power of {100 * POWER:.0f}%"
    by_starts = f"{_size(needed.starts, 'starts')} with {seeds} per arm"
    if math.isnan(needed.seeds):
        return f"{opening} for these runs, it takes {by_starts}. Train more seeds to learn how many of them it takes."
    return f"{opening}, it takes {by_starts}, or {_size(needed.seeds, 'seeds per arm')} with {starts}."


def count(n: int, noun: str) -> str:
    """A number with its noun, in the plural where it is one."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _detectable(observed: Components, sizes: Sequence[int], n_starts: int) -> float:
    """Half-width of the interval, and the same with quantiles at the power (as in `contrasts`)."""
    return _half_width(observed, sizes, n_starts) + _half_width(observed, sizes, n_starts, POWER)


def _half_width(observed: Components, sizes: Sequence[int], n_starts: int, quantile: float = (1 + LEVEL) / 2) -> float:
    """Half-width of the interval for given components, seeds per arm and starts; NaN where nothing varies.

    Degrees of freedom of the sum of the arms' estimated variances by Welch (1947).
    """
    by_starts = 0.0
    if n_starts > 1:
        by_starts = float(special.stdtrit(n_starts - 1, quantile)) ** 2 * observed.starts / n_starts
    if min(sizes) == 1:
        return math.sqrt(by_starts) if n_starts > 1 else math.nan
    triples = zip(observed.seeds, observed.rest, sizes, strict=True)
    variances = [max(0.0, seed + rest / n_starts) / size for seed, rest, size in triples]
    total, degrees = sum(variances), float(min(sizes) - 1)
    if total > 0:
        degrees = total**2 / sum(variance**2 / (size - 1) for variance, size in zip(variances, sizes, strict=True))
    return math.sqrt(float(special.stdtrit(degrees, quantile)) ** 2 * total + by_starts)


def _variance(values: Array) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else math.nan


def _above(rounding: float, variance: float) -> float:
    """A variance, or 0 where rounding alone can have made it."""
    return 0.0 if variance < rounding else variance


def _smallest(enough: Callable[[int], bool]) -> float:
    """Smallest size from 2 that is enough, for a condition that stays true once it is; infinite past MOST."""
    sizes = range(2, MOST)
    place = bisect.bisect_left(sizes, True, key=enough)
    return float(sizes[place]) if place < len(sizes) else math.inf


def _check(arms: Arms) -> None:
    shapes = [np.shape(arm) for arm in arms]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise ValueError(f"scores of shape {shapes}: each arm must be (seeds, starts), at least one of each")
    if len({shape[1] for shape in shapes}) > 1:
        raise ValueError(f"scores of shape {shapes}: all arms must use the same starts")
    if not all(np.isfinite(arm).all() for arm in arms):
        raise ValueError("scores have NaN or infinite values; every score must be finite")


def _size(number: float, unit: str) -> str:
    if math.isnan(number):
        return f"an unknown number of {unit}"
    return f"about {number:,.0f} {unit}" if math.isfinite(number) else f"more than {MOST:,} {unit}"
