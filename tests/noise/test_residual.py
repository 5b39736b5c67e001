"""Noise for residuals: what a prediction leaves open decides, and nothing else."""

from functools import partial

import pytest
import torch

from immiscible_policy.noise import (
    CONDITIONAL_MEANS,
    ForResidual,
    LinearPrediction,
    cross_fitted,
    fit_linear_prediction,
    fit_mlp_prediction,
    make_selector,
)
from immiscible_policy.noise.audit import audit
from immiscible_policy.noise.audit.statistics import prior_shift
from tests.random_numbers import generator

WEIGHTS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0], [4.0, -2.0, 1.0]])


def test_the_fit_recovers_a_linear_law():
    c = torch.randn(500, 2, generator=generator())
    x = c @ WEIGHTS[:2] + WEIGHTS[2]
    result = fit_linear_prediction(c, x, ridge=1e-9)
    torch.testing.assert_close(result.weights, WEIGHTS, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result(c), x, rtol=1e-4, atol=1e-4)


def test_residuals_do_not_correlate_with_conditions():
    c = torch.randn(2000, 3, generator=generator())
    x = (c[:, :1] ** 3 + c @ torch.ones(3, 4) + torch.randn(2000, 4, generator=generator(1))).reshape(2000, 2, 2)
    rest = ForResidual(make_selector("knn"), fit_linear_prediction(c, x, ridge=1e-9)).residual(x, c)
    assert rest.shape == x.shape
    crossed = (c - c.mean(0)).T @ rest.flatten(1) / len(c)
    torch.testing.assert_close(crossed, torch.zeros(3, 4), rtol=0, atol=1e-4)


def test_a_large_penalty_leaves_the_mean():
    c, x = torch.randn(50, 2, generator=generator()), torch.rand(50, 3, generator=generator(1)) + 5
    result = fit_linear_prediction(c, x, ridge=1e9)
    torch.testing.assert_close(result(c), x.mean(0).expand(50, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_the_selector_sees_the_residual_and_everything_else(name):
    c, x = torch.randn(64, 2, generator=generator()), torch.randn(64, 3, generator=generator(1))
    prediction, plain = LinearPrediction(WEIGHTS), make_selector(name)
    mask = torch.tensor([True, True, False])
    chosen = ForResidual(plain, prediction)(x, condition=c, mask=mask, generator=generator(2))
    rest = x - (c @ WEIGHTS[:2] + WEIGHTS[2])
    assert torch.equal(chosen, plain(rest, mask=mask, generator=generator(2)))
    assert not torch.equal(chosen, plain(x, mask=mask, generator=generator(2)))


def test_without_anything_predicted_it_is_the_plain_selector():
    x, c = torch.randn(32, 4, 2, generator=generator()), torch.randn(32, 5, generator=generator(1))
    nothing = LinearPrediction(torch.zeros(6, 8))
    select = make_selector("linear")
    chosen = ForResidual(select, nothing)(x, condition=c, generator=generator(2))
    assert torch.equal(chosen, select(x, generator=generator(2)))


def test_no_condition_meets_a_mean_noise_and_noise_still_follows_the_sample():
    """With x = 3 c + r plain selection tells c (a prior shift); for the residual it tells r alone."""
    c = torch.randn(4096, 2, generator=generator())
    r = torch.randn(4096, 2, generator=generator(1))
    x = 3 * c + r
    select = make_selector("linear")
    rest = ForResidual(select, fit_linear_prediction(c, x))
    plain = audit(select, x, condition=c, batch_size=256, batches=16, generator=generator(2))
    centred = audit(rest, x, condition=c, batch_size=256, batches=16, generator=generator(2))
    assert plain.prior_shift > 1 and centred.prior_shift < 0.1
    noise = torch.cat([rest(x[i : i + 256], condition=c[i : i + 256]) for i in range(0, 4096, 256)])
    assert prior_shift(c, noise) < 0.15
    assert float(torch.corrcoef(torch.stack([noise[:, 0], r[:, 0]]))[0, 1]) > 0.9


def bent(count):
    """Conditions, and samples that are a parabola of them with noise of standard deviation 0.5."""
    c = torch.randn(count, 2, generator=generator())
    mean = torch.stack([c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1]], dim=1)
    return c, mean, mean + 0.5 * torch.randn(count, 3, generator=generator(1))


def test_the_network_recovers_a_curved_law_where_the_line_cannot():
    c, mean, x = bent(4000)
    errors = {name: float((fit(c, x)(c) - mean).square().mean()) for name, fit in CONDITIONAL_MEANS.items()}
    assert errors["mlp"] < 0.03 < 0.8 < errors["linear"]  # the parabola's and the product's variance, 2 + 1, over 3


def test_the_network_starts_at_the_line_and_repeats_itself():
    c, _, x = bent(200)
    line = fit_linear_prediction(c, x)(c)
    still = fit_mlp_prediction(c, x, steps=0)
    torch.testing.assert_close(still(c), line)
    first, second = (fit_mlp_prediction(c, x, steps=20)(c) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, line)


@pytest.mark.parametrize("name", sorted(CONDITIONAL_MEANS))
def test_units_of_conditions_and_samples_do_not_matter(name):
    c, mean, x = bent(1000)
    fit = CONDITIONAL_MEANS[name]
    far = 100 * fit(c, x)(c) + 7
    torch.testing.assert_close(fit(c, 100 * x + 7)(c), far, rtol=1e-3, atol=0.5)


def test_cross_fitting_predicts_each_group_from_the_others():
    group = torch.arange(7).repeat_interleave(torch.arange(3, 10))
    c, x = torch.randn(len(group), 2, generator=generator()), torch.randn(len(group), 3, generator=generator(1))
    expected = cross_fitted(fit_linear_prediction, c, x, group)
    for fold in range(5):
        out = group % 5 == fold
        torch.testing.assert_close(expected[out], fit_linear_prediction(c[~out], x[~out])(c[out]))


def test_what_nothing_predicts_is_not_fitted_on_held_out_groups():
    """Where samples are pure noise the residual keeps their variance: nothing of a sample is in its own mean."""
    c, x = torch.randn(60, 20, generator=generator()), torch.randn(60, 4, generator=generator(1))
    fit = partial(fit_mlp_prediction, steps=100)
    inside = x - fit(c, x)(c)
    outside = x - cross_fitted(fit, c, x, torch.arange(60) // 3)
    assert float(inside.square().mean()) < 0.1 < 0.9 < float(outside.square().mean())


def test_without_groups_folds_are_runs_of_samples():
    c, x = torch.randn(11, 1, generator=generator()), torch.randn(11, 2, generator=generator(1))
    runs = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    expected = cross_fitted(fit_linear_prediction, c, x, runs)
    for group in (None, torch.zeros(11)):
        torch.testing.assert_close(cross_fitted(fit_linear_prediction, c, x, group), expected)


def test_sign_for_cross_fitted_residuals_tells_nothing_of_the_condition():
    """The residual is symmetric given the condition, so its noise stays N(0, I) under every condition."""
    c, _, x = bent(4000)
    expected = cross_fitted(fit_mlp_prediction, c, x)
    select = make_selector("sign")
    plain, rest = (select(target, generator=generator(2)) for target in (x, x - expected))
    assert prior_shift(c**2, plain) > 0.3 and prior_shift(c**2, rest) < 0.1
    assert float(((rest * (x - expected)).sum(1) > 0).float().mean()) == 1


def test_low_precision_stays_low():
    x, c = torch.randn(8, 3, dtype=torch.bfloat16), torch.randn(8, 2)
    assert ForResidual(make_selector("knn"), LinearPrediction(WEIGHTS))(x, condition=c).dtype == torch.bfloat16


@pytest.mark.parametrize("fit", [fit_linear_prediction, partial(fit_mlp_prediction, steps=5)])
def test_whole_numbers_as_conditions_are_what_the_same_numbers_are_with_a_point(fit):
    c = torch.randint(0, 9, (64, 2), generator=generator(1))
    x = c.float() @ torch.randn(2, 3, generator=generator(2))
    predict = fit(c.float(), x)
    torch.testing.assert_close(predict(c), predict(c.float()))
    torch.testing.assert_close(predict(c > 4), predict((c > 4).float()))


def test_what_it_cannot_use_is_refused():
    select = ForResidual(make_selector("knn"), LinearPrediction(WEIGHTS))
    with pytest.raises(ValueError, match="condition is missing"):
        select(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="condition has 5 numbers a row; the prediction needs 2"):
        select(torch.zeros(4, 3), condition=torch.zeros(4, 5))
    with pytest.raises(ValueError, match="3 conditions and 4 samples"):
        fit_linear_prediction(torch.zeros(3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="3 conditions and 4 samples"):
        cross_fitted(fit_linear_prediction, torch.zeros(3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="2 or more"):
        cross_fitted(fit_linear_prediction, torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        fit_linear_prediction(torch.full((4, 2), float("nan")), torch.zeros(4, 3))
