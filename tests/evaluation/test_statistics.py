"""Intervals against hand algebra, and their coverage against experiments whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from immiscible_policy.evaluation.statistics import (
    Array,
    components,
    detectable,
    difference_arms,
    episodes_needed,
    interval,
    mean_interval,
    needed_sentence,
    sign_test,
)


def crossed(rng: np.random.Generator, sizes: tuple[int, int], spread: tuple[float, float, float]) -> Array:
    """Scores mu + seed_s + start_t + rest_st with mu = 0."""
    seeds, starts = sizes
    seed, start, rest = spread
    return (
        seed * rng.standard_normal((seeds, 1))
        + start * rng.standard_normal((1, starts))
        + rest * rng.standard_normal(sizes)
    )


def test_components_of_a_table_worked_by_hand() -> None:
    # Rows 0, 2 / 4, 10: seed means 1, 7 (variance 18), start means 2, 6 (variance 8), residuals -1, 1, 1, -1:
    # MS_rest = 4 / 1, var_seed = 18 - 4/2 = 16, var_start = 8 - 4/2 = 6.
    result = components([np.array([[0.0, 2.0], [4.0, 10.0]])])
    assert result.rest == pytest.approx((4.0,))
    assert result.seeds == pytest.approx((16.0,))
    assert result.starts == pytest.approx(6.0)
    half = stats.t.ppf(0.975, 1) * math.sqrt(18 / 2 + 6 / 2)
    shown = mean_interval(np.array([[0.0, 2.0], [4.0, 10.0]]))
    assert (shown.estimate, shown.low, shown.high) == pytest.approx((4.0, 4 - half, 4 + half))
    assert shown.over == "seeds and starts"


def test_components_are_unbiased() -> None:
    rng = np.random.default_rng(1)
    result = [components([crossed(rng, (4, 8), (0.3, 0.5, 0.7))]) for _ in range(4000)]
    assert np.mean([item.seeds[0] for item in result]) == pytest.approx(0.09, abs=0.01)
    assert np.mean([item.rest[0] for item in result]) == pytest.approx(0.49, abs=0.01)
    assert np.mean([item.starts for item in result]) == pytest.approx(0.25, abs=0.02)


def test_one_seed_gives_the_students_interval_over_starts() -> None:
    values = np.array([[0.2, 0.4, 0.9, 0.7]])
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values[0]))
    result = mean_interval(values)
    assert (result.low, result.high) == pytest.approx(expected)
    assert result.over == "starts" and "conditional on these runs" in result.meaning


def test_one_start_gives_the_students_interval_over_seeds() -> None:
    values = np.array([[0.2], [0.4], [0.9]])
    expected = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values[:, 0]))
    result = mean_interval(values)
    assert (result.low, result.high, result.over) == (
        pytest.approx(expected[0]),
        pytest.approx(expected[1]),
        "seeds",
    )


def test_one_episode_gives_no_interval() -> None:
    result = mean_interval(np.array([[0.5]]))
    assert result.estimate == 0.5 and math.isnan(result.low) and result.over == "nothing" and not result.excludes_zero


def test_unpaired_seeds_give_welchs_interval_where_starts_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((4, 1)) * 3 + np.zeros((4, 6)), rng.random((7, 1)) + np.zeros((7, 6))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval(0.95)
    result = interval(difference_arms(a, b, same_seeds=False))
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_the_interval_obeys_shift_scale_order_and_sign() -> None:
    rng = np.random.default_rng(3)
    values = crossed(rng, (3, 10), (0.1, 0.2, 0.3))
    plain = mean_interval(values)
    shuffled = mean_interval(values[rng.permutation(3)][:, rng.permutation(10)])
    moved = mean_interval(2 * values + 5)
    turned = mean_interval(-values)
    assert (shuffled.low, shuffled.high) == pytest.approx((plain.low, plain.high))
    assert (moved.low, moved.high) == pytest.approx((2 * plain.low + 5, 2 * plain.high + 5))
    assert (turned.low, turned.high) == pytest.approx((-plain.high, -plain.low))


def test_what_is_common_to_both_arms_leaves_a_paired_difference() -> None:
    rng = np.random.default_rng(4)
    a, b, common = (crossed(rng, (3, 10), (0.1, 0.2, 0.3)) for _ in range(3))
    plain = interval(difference_arms(a, b, same_seeds=True))
    shifted = interval(difference_arms(a + common, b + common, same_seeds=True))
    assert (plain.low, plain.high) == pytest.approx((shifted.low, shifted.high))
    starts = 10 * rng.standard_normal((1, 10))
    unpaired = interval(difference_arms(a, b, same_seeds=False))
    shifted = interval(difference_arms(a + starts, b + starts, same_seeds=False))
    assert (unpaired.low, unpaired.high) == pytest.approx((shifted.low, shifted.high))


SPREADS = [(0.05, 0.0, 0.02), (0.03, 0.03, 0.2), (0.03, 0.1, 0.15), (0.01, 0.2, 0.1), (0.0, 0.05, 0.2)]


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", SPREADS)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(5)
    result = [mean_interval(crossed(rng, (seeds, 50), spread)) for _ in range(800)]
    share = np.mean([item.low <= 0 <= item.high for item in result])
    assert 0.93 <= share <= 0.985  # nominal 0.95; the standard error of a share of 800 is 0.008


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5)])
def test_so_does_the_interval_of_unpaired_seeds(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(800):
        both = 0.1 * rng.standard_normal((1, 50))
        a, b = (crossed(rng, (size, 50), (0.04, 0.05, 0.15)) + both for size in sizes)
        result = interval(difference_arms(a, b, same_seeds=False))
        held += result.low <= 0 <= result.high
    assert 0.93 <= held / 800 <= 0.995


def test_so_does_it_for_bounded_skewed_scores() -> None:
    # Coverage is a mixture: near 1 where the policy gets there, anything where it does not.
    rng = np.random.default_rng(7)

    def scores(seeds: int, starts: int) -> Array:
        chance = stats.beta(8, 2).rvs((1, starts), rng) + 0.05 * rng.standard_normal((seeds, 1))
        return np.where(rng.random((seeds, starts)) < chance, 0.96, rng.random((seeds, starts)))

    truth = np.mean([scores(200, 200).mean() for _ in range(50)])
    result = [mean_interval(scores(3, 50)) for _ in range(800)]
    assert 0.92 <= np.mean([item.low <= truth <= item.high for item in result]) <= 0.99


def test_the_sign_test_is_binomial_and_leaves_ties_out() -> None:
    result = sign_test(np.array([[1.0, 2.0, 0.5], [0.0, 3.0, -1.0]]))
    assert (result.wins, result.losses, result.ties) == (4, 1, 1)
    assert result.p == pytest.approx(2 * (5 + 1) / 32)
    assert sign_test(np.zeros(3)).p == 1.0
    assert sign_test(np.ones(3)).p == pytest.approx(2 ** (1 - 3))


def test_needed_sizes_are_the_smallest_that_exclude_zero() -> None:
    # Components known exactly: a table seed_s + start_t + 0.1, without residual.
    by_seed, by_start = np.array([-0.1, 0.0, 0.1]), np.linspace(-1, 1, 20)
    arms = [by_seed[:, None] + by_start + 0.1]
    needed = episodes_needed(arms)
    var_seed, var_start = by_seed.var(ddof=1), by_start.var(ddof=1)

    def root(quantile: float, s: int, n: int) -> float:
        by_seeds = stats.t.ppf(quantile, s - 1) ** 2 * var_seed / s
        return math.sqrt(by_seeds + stats.t.ppf(quantile, n - 1) ** 2 * var_start / n)

    def half(s: int, n: int) -> float:
        return root(0.975, s, n) + root(0.8, s, n)

    assert not interval(arms).excludes_zero
    assert needed.starts == math.inf and half(3, 10**7) > 0.1  # the seeds alone are too far apart
    assert needed.seeds == math.inf and half(10**7, 20) > 0.1  # and so are the starts
    closer = [by_seed[:, None] + by_start / 5 + 0.1]
    n_seeds = int(episodes_needed(closer).seeds)
    var_start /= 25
    assert half(n_seeds, 20) < 0.1 <= half(n_seeds - 1, 20)
    steadier = [by_seed[:, None] / 4 + by_start + 0.1]
    n_starts = int(episodes_needed(steadier).starts)
    var_seed, var_start = var_seed / 16, by_start.var(ddof=1)
    assert half(3, n_starts) < 0.1 <= half(3, n_starts - 1)


def test_needed_sizes_agree_with_what_is_detectable() -> None:
    rng = np.random.default_rng(11)
    for _ in range(200):
        arms = [crossed(rng, (3, 20), (0.05, 0.1, 0.2)) + 0.2]
        needed, enough = episodes_needed(arms), detectable(arms) < arms[0].mean()
        assert (needed.starts <= 20) == enough == (needed.seeds <= 3)
        assert interval(arms).excludes_zero or not enough


def test_needed_sizes_are_said_in_words() -> None:
    rng = np.random.default_rng(12)
    none = episodes_needed([np.zeros((3, 5))])
    assert (none.starts, none.seeds) == (math.inf, math.inf)
    assert "more than 1,000,000 starts with 3 seeds per arm" in needed_sentence(none, False, 3, 5)
    assert "more than 1,000,000 seeds per arm with 5 starts" in needed_sentence(none, False, 3, 5)
    one = episodes_needed([rng.standard_normal((1, 20)) + 0.1])
    assert math.isnan(one.seeds) and 20 < one.starts < math.inf
    said = needed_sentence(one, False, 1, 20)
    assert f"80% for these runs, it takes about {one.starts:,.0f} starts" in said and "Train more seeds" in said
    assert "excludes 0 with 3 seeds" in needed_sentence(none, True, 3, 5)


@pytest.mark.parametrize(
    "arms, message",
    [
        ([np.zeros(3)], "must be \\(seeds, starts\\)"),
        ([np.zeros((0, 3))], "at least one of each"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "same starts"),
        ([np.full((2, 3), np.nan)], "must be finite"),
    ],
)
def test_bad_scores_are_refused(arms: list[Array], message: str) -> None:
    for use in (
        interval,
        components,
        episodes_needed,
    ):
        with pytest.raises(ValueError, match=message):
            use(arms)


def test_different_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired by seed"):
        difference_arms(np.zeros((2, 3)), np.zeros((3, 3)), same_seeds=True)


@pytest.mark.parametrize(("wins", "n"), [(0, 4), (4, 4), (3, 10), (49, 50)])
def test_one_seeds_proportion_has_wilsons_interval(wins: int, n: int) -> None:
    ours = mean_interval(np.repeat([[1.0, 0.0]], [wins, n - wins], axis=1), proportion=True)
    theirs = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.high - ours.low > 0.04


def test_a_proportions_interval_is_a_share_and_as_wide_as_the_plain_one_in_the_middle() -> None:
    rng = np.random.default_rng(3)
    for p in (0.02, 0.5, 0.97):
        values = (rng.random((5, 40)) < p).astype(float)
        ours, plain = mean_interval(values, proportion=True), mean_interval(values)
        assert 0 <= ours.low <= ours.estimate <= ours.high <= 1 and ours.over == plain.over
        if p == 0.5:
            assert ours.high - ours.low == pytest.approx(plain.high - plain.low, rel=0.15)
    nothing = mean_interval(np.zeros((3, 20)), proportion=True)
    theirs = stats.binomtest(0, 20).proportion_ci(method="wilson")
    assert nothing.low == 0 and nothing.high == pytest.approx(theirs.high)


def test_wilsons_interval_holds_the_truth_in_95_percent_of_small_experiments() -> None:
    rng = np.random.default_rng(4)
    for p in (0.1, 0.5, 0.9):
        seeds = np.clip(p + 0.03 * rng.standard_normal((600, 4, 1)), 0, 1)
        draws = (rng.random((600, 4, 25)) < seeds).astype(float)
        ends = [mean_interval(draw, proportion=True) for draw in draws]
        assert np.mean([each.low <= p <= each.high for each in ends]) > 0.94


def test_equal_proportions_have_a_difference_with_a_width() -> None:
    none, all_ = interval([np.zeros((1, 4))], proportion=True), interval([np.ones((1, 4))], proportion=True)
    assert (none.low, none.high) == pytest.approx((-1.96 / 6, 1.96 / 6), abs=1e-3)  # Agresti and Min: 1 / (n + 2)
    assert all_.estimate == 1 and all_.low < 0.7 and all_.low > 0
    assert interval([np.zeros((1, 400))], proportion=True).high < none.high / 50


def test_counts_of_two_seeds_that_happen_to_balance_are_not_sure_of_anything() -> None:
    """Both seeds have three more wins than losses, scattered over the starts: each component comes out as 0."""
    one = np.zeros(20)
    other = np.zeros(20)
    one[:11], one[11:19] = 1, -1
    other[9:], other[1:9] = 1, -1
    arms = [np.stack([one, other])]
    assert components(arms).starts > 0
    ours, error = interval(arms, proportion=True), arms[0].std(ddof=1) / np.sqrt(40)
    assert ours.estimate == pytest.approx(0.15) and ours.low == pytest.approx(0.15 - stats.t.ppf(0.975, 19) * error)
    assert not ours.excludes_zero and detectable(arms) > 0.2 and episodes_needed(arms).starts > 20


def test_without_a_difference_few_seeds_of_proportions_seldom_find_one() -> None:
    rng = np.random.default_rng(5)
    for seeds, starts, p in ((2, 20, 0.5), (2, 50, 0.9), (3, 20, 0.9)):
        a, b = (rng.random((1500, seeds, starts)) < p for _ in range(2))
        found = [interval([x.astype(float) - y], proportion=True) for x, y in zip(a, b, strict=True)]
        assert np.mean([each.excludes_zero for each in found]) < 0.06
        assert not any(each.low == each.high for each in found)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.6, 0.9])
def test_rounding_is_no_variance_and_breaks_no_tie(value: float) -> None:
    equal = [np.full((3, 50), 1.0) - np.full((3, 50), value)]
    assert interval(equal, proportion=True).high - interval(equal, proportion=True).low > 0.03
    sums = np.array([[0.1 + 0.2 - 0.3, 0.7 + 0.1 - 0.8]])
    assert sums.any() and sign_test(sums) == sign_test(np.zeros((1, 2)))


def test_a_proportions_ends_are_possible_and_one_episode_has_none() -> None:
    always = interval([np.ones((2, 50))], proportion=True)
    assert always.estimate == 1 and always.high == 1 and 0.85 < always.low < 0.97
    assert np.isnan(mean_interval(np.ones((1, 1)), proportion=True).low)


def test_of_one_start_it_is_unknown_how_many_are_needed() -> None:
    needed = episodes_needed([np.array([[0.1], [0.3], [0.05]])])
    assert np.isnan(needed.starts) and needed.seeds > 3 and needed.text.startswith("unknown, ")
    assert "an unknown number of starts" in needed_sentence(needed, False, 3, 1)
