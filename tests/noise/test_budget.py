"""The budget of selection: what noise can tell, what conditions tell of it, and whether selection can pay."""

import math

import pytest
import torch
from scipy import integrate

from immiscible_policy.noise import ForResidual, LinearPrediction, make_selector
from immiscible_policy.noise.audit import Explained, audit, divergence, explained, probe
from immiscible_policy.noise.audit.statistics import prior_shift
from tests.random_numbers import generator


@pytest.mark.parametrize("k", [1, 2, 8, 64])
def test_knn_spends_what_the_winner_of_k_tells(k):
    """The winner's rank U among all noises has the density k u^(k-1): KL = E log (k U^(k-1))."""
    spent = integrate.quad(lambda u: k * u ** (k - 1) * math.log(k * u ** (k - 1)), 0, 1)[0]
    for nearest in ("distance", "angle"):
        assert make_selector("knn", k=k, nearest=nearest).divergence(256) == pytest.approx(spent, abs=1e-6)


def test_what_the_others_spend():
    assert divergence(make_selector("vanilla"), 256) == 0
    assert divergence(make_selector("sign"), 256) == math.log(2)
    assert divergence(make_selector("c2ot", pool=4), 256) == math.log(1024)
    assert divergence(ForResidual(make_selector("sign"), LinearPrediction(torch.zeros(3, 2))), 8) == math.log(2)
    assert divergence(lambda x, **_: torch.randn_like(x), 256) is None


def test_the_audit_shows_the_budget():
    x = torch.randn(64, 3, generator=generator())
    sizes = {"batch_size": 32, "batches": 2}
    assert "nats at most" not in audit(lambda x, **_: torch.randn_like(x), x, **sizes).table()
    assert (
        "KL of a sample's noise to N(0, I): 3.4657 nats at most" in audit(make_selector("linear"), x, **sizes).table()
    )


def test_conditions_tell_nothing_of_plain_noise():
    result = probe(torch.randn(2000, 3, generator=generator()), torch.randn(2000, 8, generator=generator(1)))
    assert result.shift < 0.15 and result.variance == pytest.approx(1, abs=0.03)
    assert result.spread < 0.1 and result.harm < 0.03


def test_a_curved_prior_shift_is_seen_where_the_line_is_blind():
    """e_1 = a (c^2 - 1) / sqrt(2) + sqrt(1 - a^2) z has E e_1^2 = 1, and the variance 1 - a^2 given c."""
    c, noise, a = torch.randn(3000, 1, generator=generator()), torch.randn(3000, 4, generator=generator(1)), 0.8
    noise[:, 0] = a * (c[:, 0] ** 2 - 1) / math.sqrt(2) + math.sqrt(1 - a**2) * noise[:, 0]
    result = probe(c, noise)
    assert prior_shift(c, noise) < 0.2 and 0.7 < result.shift < 0.9
    assert result.variance == pytest.approx(1 - a**2 / 4, abs=0.04)
    assert result.harm == pytest.approx(-math.log(1 - a**2) / 2, rel=0.25)


def test_a_condition_that_scales_the_noise_is_seen():
    """With the mean square 1.5 under one condition and 0.5 under the other, harm is -D log(1.5 * 0.5) / 4."""
    c = 1.0 - 2 * torch.randint(2, (3000, 1), generator=generator())
    noise = (1 + c / 2).sqrt() * torch.randn(3000, 8, generator=generator(1))
    result = probe(c, noise)
    assert result.shift < 0.15 and result.spread == pytest.approx(0.5, abs=0.05)
    assert result.harm == pytest.approx(-2 * math.log(0.75), rel=0.15)


def test_harm_stays_within_the_budget_by_hand():
    """Sign noise of x = c = +-1 is |z| c: mean and variance show -log(1 - 2 / pi) / 2 = 0.506 of the shift, log 2."""
    c = 1.0 - 2 * torch.randint(2, (4000, 1), generator=generator())
    select = make_selector("sign")
    result = probe(c, select(c, generator=generator(1)))
    assert result.shift == pytest.approx(math.sqrt(2 / math.pi), abs=0.03)
    assert result.harm == pytest.approx(-math.log(1 - 2 / math.pi) / 2, abs=0.05)
    assert result.harm < divergence(select, 4000)


def test_pairs_of_a_group_are_not_predicted_from_each_other():
    """Noise that repeats with its condition looks predictable until whole groups are held out."""
    group = torch.arange(100).repeat_interleave(20)
    c, noise = torch.randn(100, 20, generator=generator())[group], torch.randn(100, 2, generator=generator(1))[group]
    assert probe(c, noise, group).shift < 0.5 < 0.8 < probe(c, noise, torch.arange(2000)).shift


def test_what_conditions_explain_of_samples():
    """Of x = c^2 + z / 2 the parabola explains 2 / 2.25, and no line anything."""
    c = torch.randn(3000, 1, generator=generator())
    result = explained(c, c**2 + 0.5 * torch.randn(3000, 1, generator=generator(1)), torch.arange(3000) // 10)
    assert result.linear < 0.05 and result.mlp == pytest.approx(2 / 2.25, abs=0.04)
    with pytest.raises(ValueError, match="x does not vary"):
        explained(c, torch.ones(3000, 2))


@pytest.mark.parametrize(
    ("share", "advice"),
    [
        (0.8, "use vanilla"),
        (0.1, "10% or more"),
        (0.09, "linear may"),
        (0, "less than 10%"),
    ],
)
def test_advice_names_its_threshold(share, advice):
    text = Explained(-2.0, share).advice
    assert advice in text and f"explains {100 * share:.0f}%" in text and "\n" not in text
