"""Curves and speed-ups by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from immiscible_policy.image.evaluation.curves import against, best, geometric_mean, make_curve, over_seeds, reach

VANILLA = {100: 9.0, 200: 5.0, 300: 4.0, 400: 4.5}


def test_best_is_the_first_of_the_smallest():
    assert best({100: 3.0, 200: 2.0, 300: 2.0}) == (2.0, 200)


def test_a_run_that_gets_as_good_is_held_to_the_first_ones_best():
    result = reach(0, VANILLA, {100: 6.0, 200: 4.0, 300: 5.0, 400: 1.0})
    assert (result.target, result.first, result.other, result.whole) == (4.0, 300, 200, True)
    assert result.ratio == pytest.approx(1.5)


def test_a_run_that_does_not_is_held_to_its_own_best():
    result = reach(0, VANILLA, {100: 9.5, 200: 7.0, 400: 5.0})
    assert (result.target, result.first, result.other, result.whole) == (5.0, 200, 400, False)
    assert result.ratio == pytest.approx(0.5)


def test_runs_that_swap_places_have_the_reciprocal():
    """So chance alone has a mean of 1, whichever of two runs comes first."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b = ({step: float(generator.normal()) for step in range(100, 1100, 100)} for _ in range(2))
        assert reach(0, a, b).ratio == pytest.approx(1 / reach(0, b, a).ratio)
        assert reach(0, a, b).whole or reach(0, b, a).whole


def test_a_run_reaches_its_own_best_when_it_does():
    assert reach(0, VANILLA, VANILLA).ratio == 1


def test_geometric_mean_and_its_interval_by_hand():
    """log2 ratios 1, 2, 3: mean 2, standard error 1 / sqrt(3)."""
    result = geometric_mean([2.0, 4.0, 8.0])
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert result.estimate == pytest.approx(4)
    assert (result.low, result.high) == (pytest.approx(2 ** (2 - half)), pytest.approx(2 ** (2 + half)))


def test_no_mean_without_a_common_seed():
    assert geometric_mean([]) is None


def test_ratios_that_are_all_the_same_are_no_certainty():
    """Two checkpoints: every seed reached its target at the last one."""
    result = geometric_mean([1.0, 1.0, 1.0])
    assert result.estimate == 1 and math.isnan(result.low) and math.isnan(result.high)


def test_the_interval_over_seeds_is_students():
    values = np.array([1.0, 2.0, 6.0])
    low, high = stats.t.interval(0.95, 2, loc=3, scale=values.std(ddof=1) / math.sqrt(3))
    result = over_seeds(values)
    assert (result.estimate, result.low, result.high) == (3, pytest.approx(low), pytest.approx(high))


def test_a_curve_has_the_checkpoints_that_all_seeds_share():
    curve = make_curve("a", {0: VANILLA, 1: {200: 7.0, 300: 6.0}})
    assert curve.steps == [200, 300]
    assert curve.seeds.tolist() == [[5, 4], [7, 6]]
    assert [result.estimate for result in curve.means] == [6, 5]
    with pytest.raises(ValueError, match="seeds of a share no measured checkpoint"):
        make_curve("a", {0: {100: 1.0}, 1: {200: 1.0}})


def test_runs_are_paired_by_seed():
    """Seeds differ by 10, runs by 1: paired, the interval knows the difference exactly."""
    first, other = ({seed: {100: 10.0 * seed + 5 - shift} for seed in range(3)} for shift in (0, 1))
    result = against(first, other)
    assert result.paired and result.step == 100
    assert (result.difference.low, result.difference.high) == (pytest.approx(-1), pytest.approx(-1))
    unpaired = against(first, {seed + 5: distances for seed, distances in other.items()})
    assert not unpaired.paired and not unpaired.reached and unpaired.speedup is None
    assert unpaired.difference.low < -1 < unpaired.difference.high


def test_runs_without_a_common_checkpoint_are_refused():
    with pytest.raises(ValueError, match="share no measured checkpoint"):
        against({0: {100: 1.0}}, {0: {200: 1.0}})
