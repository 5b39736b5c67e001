"""The self-test of the comparison: banks of known laws, broken intervals that it must catch, banks rolled out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.selftest import (
    EXPERIMENT,
    Bank,
    Share,
    comparisons,
    deviation_of_banks,
    examine,
    excluding_zero,
    plant,
    read_bank,
    roll_bank,
    student_power,
    whole_bank,
    write_bank,
)
from immiscible_envs.starts import published_starts
from immiscible_policy.cli import CommandError, parse
from immiscible_policy.evaluation.statistics import Interval, episodes_needed

COUNT = 1000


def beta_bank(seed: int, seeds: int = 20, starts: int = 50, concentration: float = 4.0) -> np.ndarray:
    """Coverage (seeds, starts) as policies score it: Beta about each start's own mean, often near 1."""
    rng = np.random.default_rng(seed)
    mean = rng.beta(3.0, 1.0, size=(1, starts)).clip(0.02, 0.98)
    return rng.beta(concentration * mean, concentration * (1 - mean), size=(seeds, starts))


def shrunk(result: Interval, factor: float) -> Interval:
    """The same estimate with a narrower interval."""
    return replace(
        result,
        low=result.estimate + factor * (result.low - result.estimate),
        high=result.estimate + factor * (result.high - result.estimate),
    )


@pytest.mark.parametrize("same_seeds", [True, False])
def test_equals_are_told_apart_in_at_most_5_percent_and_a_broken_interval_is_caught(same_seeds):
    """1,000 comparisons from 100 banks, so that no bank's own draw decides; half the width is caught."""
    rng = np.random.default_rng(1)
    banks = [beta_bank(seed) for seed in range(100)]
    result = [item for scores in banks for item in comparisons(scores, scores, 4, 10, rng, same_seeds=same_seeds)]
    assert excluding_zero(result).of == COUNT and excluding_zero(result).low(0) <= 0.05
    assert np.mean([item.estimate for item in result]) == pytest.approx(0, abs=0.003)
    broken = excluding_zero([shrunk(item, 0.5) for item in result])
    assert broken.low(0.01) > 0.1


@pytest.mark.parametrize("same_seeds", [True, False])
def test_a_planted_difference_is_found_as_often_as_students_test_says(same_seeds):
    """Where only seeds vary, the interval is Student's t: the shares agree within 3.4 Monte-Carlo deviations."""
    scores = 0.8 + 0.05 * np.random.default_rng(2).standard_normal((400, 1)) + np.zeros((400, 3))
    result = excluding_zero(
        comparisons(scores, scores - 0.05, 5, COUNT, np.random.default_rng(3), same_seeds=same_seeds)
    )
    expected = student_power(scores.mean(1), 0.05, 5, same_seeds=same_seeds)
    assert result.estimate == pytest.approx(expected, abs=3.4 * (expected * (1 - expected) / COUNT) ** 0.5)


def test_student_power_without_a_difference_is_the_level():
    means = np.random.default_rng(0).standard_normal(20)
    assert student_power(means, 0.0, 4, same_seeds=True) == pytest.approx(0.05)


def test_the_needed_seeds_find_the_planted_difference_four_times_in_five():
    scores = beta_bank(4)
    worse = plant(scores, 0.05)
    needed = int(episodes_needed(whole_bank(scores, worse, same_seeds=False)).seeds)
    result = comparisons(scores, worse, needed, COUNT, np.random.default_rng(5), same_seeds=False)
    assert 0.7 < excluding_zero(result).estimate < 0.95  # sizes are whole, so often a little more


def test_planting_by_hand():
    worse = plant(np.array([[0.02, 0.5, 1.0]]), 0.05)
    assert worse == pytest.approx(np.array([[0.0, 0.45, 0.95]]))


def test_runs_share_no_seed():
    """Seed s scores s everywhere: two runs of half the seeds each have all of them between them."""
    scores = np.arange(6.0)[:, None] + np.zeros((6, 2))
    result = comparisons(scores, scores, 3, 50, np.random.default_rng(0), same_seeds=False)
    sums = {round(3 * item.estimate) for item in result}  # sum of A - sum of B = 2 sum of A - 15: odd
    assert all(item % 2 for item in sums) and max(sums) <= 9
    with pytest.raises(ValueError, match="size=4: two runs need 8 sampling seeds; the bank has 6"):
        comparisons(scores, scores, 4, 1, np.random.default_rng(0), same_seeds=False)


def test_the_monte_carlo_interval_by_hand():
    """No success among n: the upper end solves (1 - p)^n = 0.025."""
    assert Share(0, 100).error == (0.0, pytest.approx(1 - 0.025**0.01))
    share = Share(200, 1000)  # deviation of the resampling sqrt(0.2 0.8 / 1000), with 0.016 of the bank
    assert share.low(0.0) == pytest.approx(0.2 - 1.96 * 0.00016**0.5)
    assert share.low(0.016) == pytest.approx(0.2 - 1.96 * (0.00016 + 0.000256) ** 0.5)


def test_the_fewer_seeds_a_bank_has_the_more_it_moves_the_share():
    few, many = (deviation_of_banks(seeds, 3, same_seeds=True, banks=60, draws=1000) for seeds in (6, 60))
    assert few > 2 * many and few > 0.01


def test_the_arms_of_a_whole_bank_vary_as_its_seeds_do():
    """Differences of two independent seeds have twice the variance of one; both kinds of arms have the planted mean."""
    scores = beta_bank(6)
    worse = plant(scores, 0.05)
    variance = scores.mean(1).var(ddof=1)
    (paired,) = whole_bank(scores, worse, same_seeds=True)
    assert len(paired) == 20 * 19 and paired.mean() == pytest.approx((scores - worse).mean())
    assert paired.mean(1).var() == pytest.approx(2 * variance, rel=0.1)
    unpaired = whole_bank(scores, worse, same_seeds=False)
    assert sum(arm.mean() for arm in unpaired) == pytest.approx((scores - worse).mean())


def test_what_is_examined_is_written_beside_the_bank(tmp_path):
    write_bank(tmp_path / "mine.json", Bank(500, "ddim, 10 steps", list(range(50)), beta_bank(0)))
    words = [f"bank={tmp_path / 'mine.json'}", "comparisons=50", "sizes=3,5"]
    findings = EXPERIMENT.measure(parse(words, EXPERIMENT.options, EXPERIMENT.usage))
    bank = findings.figures["banks"]["mine"]
    assert {(cell["pairing"], cell["seeds"]) for cell in bank["cells"]} >= {
        (pairing, size) for pairing in ("paired", "unpaired") for size in (3, 5)
    }
    assert all(cell["rejected"]["of"] == cell["found"]["of"] == 50 for cell in bank["cells"])
    assert 0.045 < bank["planted"] <= 0.05
    assert "### mine" in findings.text and "At most 5 %" in findings.text
    assert len(findings.picture.axes) == 2
    json.dumps(findings.figures, allow_nan=False)


def test_examining_is_a_function_of_its_seed():
    bank = Bank(0, "", list(range(50)), beta_bank(0))
    assert examine(bank, [3], 0.05, 30, 0) == examine(bank, [3], 0.05, 30, 0) != examine(bank, [3], 0.05, 30, 1)


class Wandering:
    """Pushes about at random, from the noise that the evaluation gives it."""

    obs, obs_steps = "keypoints", 2

    def __init__(self):
        self.seen = set()

    def act(self, observed, generators):
        self.seen |= {g.initial_seed() for g in generators}
        noise = [g.initial_seed() % 400 + 50 for g in generators]
        return np.repeat(np.array(noise, dtype=float)[:, None, None], 8, 1).repeat(2, 2)


def test_a_bank_has_noise_of_its_own_in_every_episode(tmp_path):
    policy = Wandering()
    bank = roll_bank(policy, 7, "none", seeds=3, starts=2)
    assert bank.coverage.shape == (3, 2) and len(policy.seen) == 6
    assert bank.starts == published_starts()[0][:2].tolist() and bank.step == 7
    again = roll_bank(Wandering(), 7, "none", seeds=2, starts=2)
    assert np.array_equal(again.coverage, bank.coverage[:2]), "an episode is a function of its start and seed"
    write_bank(tmp_path / "bank.json", bank)
    read = read_bank(tmp_path / "bank.json")
    assert np.allclose(read.coverage, bank.coverage, atol=1e-6) and read.starts == bank.starts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bank=no.json"], "bank=no.json does not exist, and checkpoint= names none"),
        (["bank=a/x.json,b/x.json"], "of different names"),
        (["sizes=1,3"], "sizes=1,3: needs 2 seeds or more"),
        (["difference=0"], "difference=0.0: needs a share"),
        (["comparisons=0"], "comparisons=0: needs 1 or more"),
        (["bank=no.json", "checkpoint=nowhere"], "nowhere"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, message):
    with pytest.raises(ValueError, match=message) as refused:
        EXPERIMENT.measure(parse(words, EXPERIMENT.options, EXPERIMENT.usage))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{}", '{"step": 1, "sampler": "", "starts": [1], "coverage": [[0.5, 0.5]]}'])
def test_a_file_that_holds_no_bank_is_refused(content, tmp_path):
    (tmp_path / "bank.json").write_text(content)
    with pytest.raises(CommandError, match="bank=.*bank.json: (has no bank|damaged)"):
        read_bank(tmp_path / "bank.json")


def test_too_many_seeds_for_a_bank_are_refused(tmp_path):
    write_bank(tmp_path / "small.json", Bank(0, "", list(range(50)), beta_bank(0, seeds=6)))
    words = [f"bank={tmp_path / 'small.json'}", "sizes=3,4"]
    with pytest.raises(CommandError, match="sizes=3,4: two runs of 4 seeds need 8; a bank has 6"):
        EXPERIMENT.measure(parse(words, EXPERIMENT.options, EXPERIMENT.usage))
