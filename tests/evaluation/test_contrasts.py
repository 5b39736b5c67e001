"""Contrasts of a grid: the paired interval for two arms, levels that hold, Holm by hand, power that holds."""

import math

import numpy as np
import pytest
from scipy import stats

from immiscible_policy.evaluation.contrasts import contrasts, holm
from immiscible_policy.evaluation.statistics import difference_arms, interval


def draw(rng, effects, seeds=3, starts=50, seed_sd=0.05, rest_sd=0.03, noise_sd=0.15):
    """Scores of the model: seeds and starts shared by the arms, the rest the arm's own."""
    shared = seed_sd * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(1, starts))
    own = {arm: rest_sd * rng.normal(size=(seeds, 1)) + noise_sd * rng.normal(size=(seeds, starts)) for arm in effects}
    return {arm: 0.8 + effect + shared + own[arm] for arm, effect in effects.items()}


def test_two_arms_give_the_paired_interval():
    arms = draw(np.random.default_rng(0), {"vanilla": 0.0, "knn": 0.05})
    paired = interval(difference_arms(arms["knn"], arms["vanilla"], same_seeds=True))
    result = contrasts(arms, "vanilla")["knn"]
    assert (result.interval.low, result.interval.high) == pytest.approx((paired.low, paired.high))
    assert result.p == pytest.approx(result.p_holm) and result.interval.over == "seeds and starts"


def test_by_hand_where_starts_do_not_vary():
    """Three arms, two seeds: residuals of +-1/12, 0, -+1/12 give var_rest = 1/72 with two degrees of freedom."""
    seeds = {"a": [0.0, 0.5], "b": [1.0, 1.25], "c": [2.0, 2.0]}
    arms = {arm: np.repeat(np.array(values)[:, None], 2, axis=1) for arm, values in seeds.items()}
    rest = np.array([[-1, 1], [0, 0], [1, -1]]) / 8
    error = np.sqrt(2 * np.sum(rest**2) / 2 / 2)
    result = contrasts(arms, "a")["b"]
    assert result.interval.estimate == pytest.approx(0.875)
    assert result.interval.high - 0.875 == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert result.p == pytest.approx(2 * stats.t.sf(0.875 / error, 2))
    assert result.detectable == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * error)


def test_holm_by_hand_counts_the_named_contrasts():
    arms = draw(np.random.default_rng(1), {"vanilla": 0.0, "b": 0.02, "c": 0.3, "d": 0.06})
    every, few = contrasts(arms, "vanilla"), contrasts(arms, "vanilla", ["b", "c"])
    p = sorted(every[arm].p for arm in "bcd")
    assert sorted(every[arm].p_holm for arm in "bcd") == pytest.approx(
        [3 * p[0], max(3 * p[0], 2 * p[1]), min(1.0, max(3 * p[0], 2 * p[1], p[2]))]
    )
    assert few["c"].p == every["c"].p and few["c"].p_holm == pytest.approx(2 * every["c"].p)
    planned = contrasts(arms, "vanilla", ["b", "c"], count=5)  # of which three are not there yet
    assert planned["c"].p_holm == pytest.approx(5 * every["c"].p)
    assert holm({"a": 0.02, "b": 0.03}, 4) == pytest.approx({"a": 0.08, "b": 0.09})


def test_equal_scores_differ_in_nothing():
    arms = {arm: np.full((2, 3), 0.5) for arm in ("vanilla", "knn")}
    assert contrasts(arms, "vanilla")["knn"].p == 1.0


def test_a_difference_that_nowhere_varies_is_not_tested_and_does_not_count():
    arms = {"vanilla": np.zeros((3, 4)), "same": np.ones((3, 4)), "other": np.arange(12.0).reshape(3, 4) % 5}
    found = contrasts(arms, "vanilla")
    assert 0 < found["same"].p < 1 and 0 < found["other"].p < 1  # the pooled variance of seeds is that of `other`
    alone = contrasts({"vanilla": np.zeros((3, 4)), "same": np.ones((3, 4))}, "vanilla")["same"]
    assert math.isnan(alone.p) and math.isnan(alone.p_holm)
    assert holm({"a": 0.02, "b": math.nan, "c": 0.5})["a"] == pytest.approx(0.04)


def test_one_seed_and_one_start_have_no_interval():
    found = contrasts({"vanilla": np.full((1, 1), 0.5), "knn": np.full((1, 1), 0.6)}, "vanilla")["knn"]
    assert math.isnan(found.interval.low) and math.isnan(found.p) and found.interval.over == "nothing"


def test_intervals_hold_their_level_and_the_detectable_difference_its_power():
    """The true standard deviation of a difference of 3 seeds is sqrt(2 (0.03^2 + 0.15^2 / 50) / 3) = 0.03."""
    rng, held, detected = np.random.default_rng(2), [], []
    effect = (stats.t.ppf(0.975, 8) + stats.t.ppf(0.8, 8)) * 0.03
    for _ in range(400):
        arms = draw(rng, {"vanilla": 0.0, "b": effect, "c": 0.0, "d": 0.0, "e": 0.0})
        results = contrasts(arms, "vanilla")
        held += [not results[arm].interval.excludes_zero for arm in "cd"]
        detected.append(results["b"].interval.excludes_zero)
    assert 0.93 <= np.mean(held) <= 0.985 and 0.74 <= np.mean(detected) <= 0.86


def test_proportions_that_nowhere_differ_have_an_interval_and_nothing_to_detect():
    """0 of 4 beside 0 of 4: the interval is not [0, 0], and what could be detected is unknown."""
    arms = {"vanilla": np.zeros((2, 4)), "knn": np.zeros((2, 4))}
    found = contrasts(arms, "vanilla", proportion=True)["knn"]
    expected = interval(difference_arms(arms["knn"], arms["vanilla"], same_seeds=True), True)
    assert found.interval.low == pytest.approx(expected.low) and found.interval.low < -0.2 < 0.2 < found.interval.high
    assert found.detectable == 0
    assert contrasts(arms, "vanilla")["knn"].interval.high == 0


@pytest.mark.parametrize("value", [0.3, 0.7])
def test_rounding_is_no_variance_of_a_contrast(value):
    arms = {"vanilla": np.full((3, 50), value), "knn": np.full((3, 50), 1.0)}
    found = contrasts(arms, "vanilla", proportion=True)["knn"]
    assert math.isnan(found.p) and found.interval.high - found.interval.low > 0.03


def test_balanced_counts_of_two_seeds_are_tested():
    """Three more wins than losses in both seeds, scattered over the starts."""
    won = np.array([[1.0] * 11 + [0.0] * 9, [0.0] * 9 + [1.0] * 11])
    lost = np.array([[0.0] * 11 + [1.0] * 8 + [0.0], [0.0] + [1.0] * 8 + [0.0] * 11])
    found = contrasts({"vanilla": lost, "knn": won}, "vanilla", proportion=True)["knn"]
    assert 0.1 < found.p < 0.5 and not found.interval.excludes_zero and found.detectable > 0.2
