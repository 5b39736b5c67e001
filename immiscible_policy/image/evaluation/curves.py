"""Distances against training steps, and how much sooner one run reaches another's best (Figures 5 and 6 of 2505.18521).

Definitions, where the paper leaves them open:

* the *target* of a training seed is the smallest distance that the first run (vanilla) has at any of its checkpoints;
* a run *reaches* it at its first checkpoint whose distance is at or below the target: nothing is interpolated, so that
  steps are as coarse as checkpoints;
* the *speed-up* is the step of the first run's best checkpoint over that step, per training seed; over seeds it is the
  geometric mean, with a Student t interval of the logarithms, and given only if every seed reaches its target: the mean
  of those that do would be too high;
* the target is a minimum over checkpoints, hence a lucky value: it errs against the other run, never for it.

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
    """When a run reached the first run's best distance, for one training seed."""

    seed: int
    target: float  # the first run's smallest distance
    at: int  # step at which the first run has it
    reached: int | None  # step at which the other run is at or below it; None if at none of its checkpoints
    last: int  # the other run's last checkpoint

    @property
    def ratio(self) -> float | None:
        """How many times sooner; None if not reached."""
        return None if self.reached is None else self.at / self.reached


@dataclass(frozen=True)
class Against:
    """A run against the first one; differences are its distance - the first run's."""

    difference: Interval  # at the last checkpoint that all seeds of both share
    step: int  # of that checkpoint
    best: Interval  # difference of the smallest distances
    paired: bool
    reached: list[Reached]
    speedup: Interval | None  # geometric mean of the ratios; None unless every common seed reaches its target


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
    """When a run reached the first run's best distance."""
    target, at = best(first)
    reached = min((step for step, distance in other.items() if distance <= target), default=None)
    return Reached(seed, target, at, reached, max(other))


def geometric_mean(ratios: list[float | None]) -> Interval | None:
    """Geometric mean with the Student t interval of the logarithms; None if a ratio is missing, or there are none."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or len(known) < len(ratios):
        return None
    mean = over_seeds(np.log(known))
    return Interval(math.exp(mean.estimate), math.exp(mean.low), math.exp(mean.high), mean.over)


def _difference(other: Sequence[Distances], first: Sequence[Distances], paired: bool) -> Interval:
    """Interval of the difference of smallest distances, other - first."""
    a, b = (np.array([[best(distances)[0]] for distances in run]) for run in (other, first))
    return interval(difference_arms(a, b, same_seeds=paired))
