"""Noise for residuals: what a linear prediction leaves open decides, and nothing else."""

import pytest
import torch

from immiscible_policy.noise import ForResidual, LinearPrediction, fit_linear_prediction, make_selector
from immiscible_policy.noise.audit import audit
from immiscible_policy.noise.audit.statistics import prior_shift

WEIGHTS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0], [4.0, -2.0, 1.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_low_precision_stays_low():
    x, c = torch.randn(8, 3, dtype=torch.bfloat16), torch.randn(8, 2)
    assert ForResidual(make_selector("knn"), LinearPrediction(WEIGHTS))(x, condition=c).dtype == torch.bfloat16


def test_what_it_cannot_use_is_refused():
    select = ForResidual(make_selector("knn"), LinearPrediction(WEIGHTS))
    with pytest.raises(ValueError, match="condition is missing"):
        select(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="condition has 5 numbers a row; the prediction needs 2"):
        select(torch.zeros(4, 3), condition=torch.zeros(4, 5))
    with pytest.raises(ValueError, match="3 conditions and 4 samples"):
        fit_linear_prediction(torch.zeros(3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        fit_linear_prediction(torch.full((4, 2), float("nan")), torch.zeros(4, 3))
