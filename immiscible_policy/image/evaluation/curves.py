"""Distances against training steps, and how much sooner a run gets as good as the first (Figures 5, 6 of 2505.18521).

Definitions, where the paper leaves them open:

* the *target* of a training seed is the best distance that both runs reach: the larger of their smallest distances at
  any checkpoint. Where the other run gets as good as the first run (vanilla) ever was, that is the first run's best,
  the paper's target; where it does not, the target is its own best;
* a run *reaches* it at its first checkpoint whose distance is at or below the target: nothing is interpolated, so that
  steps are as coarse as checkpoints;
* the *speed-up* is the first run's step over the other's, per training seed; over seeds it is the geometric mean, with
  a Student t interval of the logarithms. Two runs that swap places have its reciprocal, and no seed is left out, so
  that runs which differ by chance alone have a mean of 1.

Runs are paired by training seed: seed N of both has the same order of images, and the same start noises in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from immiscible_policy.evaluation.statistics import Array, Interval, difference_arms, interval, mean_interval
from immiscible_policy.results.plots import Curve

Distances = Mapping[int, float]  # Distance by checkpoint, of one training seed
Seeds = Mapping[int, Distances]  # The same by training seed, of one run


@dataclass(frozen=True)
class Reached:
    """When two runs reached the best distance that both reach, for one training seed."""

    seed: int
    target: float
    first: int  # step at which the first run is at or below it
    other: int  # the same of the other run
    whole: bool  # whether the target is the first run's smallest distance: the other run gets as good

    @property
    def ratio(self) -> float:
        """How many times sooner the other run is."""
        return self.first / self.other


@dataclass(frozen=True)
class Against:
    """A run against the first one; differences are its distance - the first run's."""

    difference: Interval  # at the last checkpoint that all seeds of both share
    step: int  # of that checkpoint
    best: Interval  # difference of the smallest distances
    paired: bool
    reached: list[Reached]
    speedup: Interval | None  # geometric mean of the ratios; None without a common seed


def make_curve(label: str, seeds: Seeds) -> Curve:
    """The curve of a run; ValueError if its seeds share no checkpoint."""
    steps = sorted(set.intersection(*(set(distances) for distances in seeds.values()))) if seeds else []
    if not steps:
        raise ValueError(f"the seeds of {label} share no measured checkpoint; there is nothing to draw")
    values = np.array([[distances[step] for step in steps] for distances in seeds.values()])
    return Curve(steps, values, [over_seeds(values[:, column]) for column in range(len(steps))])


def over_seeds(values: Array) -> Interval:
    """Mean of one value per seed, with the Student t interval for new training seeds."""
    return mean_interval(np.asarray(values, np.float64)[:, None])


def difference_over_seeds(values: Array, first: Array, paired: bool) -> Interval:
    """Mean of values (S,) - that of the first run's (S',), one for each seed, paired where the seeds are the same."""
    return interval(difference_arms(values[:, None], first[:, None], same_seeds=paired))


def best(distances: Distances) -> tuple[float, int]:
    """The smallest distance, and the first checkpoint that has it."""
    return min((distance, step) for step, distance in distances.items())


def against(first: Seeds, other: Seeds) -> Against:
    """Compare a run with the first one; ValueError if they share no checkpoint."""
    steps = set.intersection(*(set(distances) for seeds in (first, other) for distances in seeds.values()))
    if not steps:
        raise ValueError("the runs share no measured checkpoint; train both with the same checkpoint_every")
    step, paired = max(steps), list(first) == list(other)
    common = sorted(first.keys() & other.keys())
    reached = [reach(seed, first[seed], other[seed]) for seed in common]
    other_there, first_there = ([{step: distances[step]} for distances in run.values()] for run in (other, first))
    return Against(
        difference=_difference(other_there, first_there, paired),
        step=step,
        best=_difference(list(other.values()), list(first.values()), paired),
        paired=paired,
        reached=reached,
        speedup=geometric_mean([seed.ratio for seed in reached]),
    )


def reach(seed: int, first: Distances, other: Distances) -> Reached:
    """When two runs reached the best distance that both reach."""
    smallest, own = best(first)[0], best(other)[0]
    target = max(smallest, own)
    at, reached = (min(step for step, distance in run.items() if distance <= target) for run in (first, other))
    return Reached(seed, target, at, reached, own <= smallest)


def geometric_mean(ratios: Sequence[float]) -> Interval | None:
    """Geometric mean with the Student t interval of the logarithms; None if there are no ratios.

    The ends are NaN where all ratios are the same: checkpoints too far apart to tell are no certainty.
    """
    if not ratios:
        return None
    mean = over_seeds(np.log(ratios))
    low, high = (math.nan, math.nan) if len(set(ratios)) == 1 else (math.exp(mean.low), math.exp(mean.high))
    return Interval(math.exp(mean.estimate), low, high, mean.over)


def _difference(other: Sequence[Distances], first: Sequence[Distances], paired: bool) -> Interval:
    """Interval of the difference of smallest distances, other - first."""
    own, of_first = (np.array([best(distances)[0] for distances in run]) for run in (other, first))
    return difference_over_seeds(own, of_first, paired)
