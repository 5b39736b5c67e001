"""The consistency path: boundary, curriculum, levels, loss by hand."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from scipy.stats import norm

from immiscible_policy.path.consistency import (
    SIGMA_MAX,
    SIGMA_MIN,
    Consistency,
    intervals,
    level_law,
    noise_levels,
    pseudo_huber,
)
from tests.random_numbers import generator

DEVIATIONS = pytest.mark.parametrize("sigma_data", [0.25, 0.5, 2.0])


def consistency(training_steps=8000, sigma_data=0.5, metric=pseudo_huber, **options) -> Consistency:
    return Consistency(training_steps, sigma_data=sigma_data, metric=metric, **options)


def points(path, x, sigma):
    """The network's view of x = clean + sigma e."""
    return x / math.hypot(sigma, path.sigma_data)


@DEVIATIONS
def test_at_the_lowest_level_nothing_is_changed_whatever_the_network_says(sigma_data):
    path, x = consistency(sigma_data=sigma_data), torch.randn(4, 3, 8, 8, generator=generator())
    clean = path.clean(lambda x, t: 1e3 * x, points(path, x, SIGMA_MIN), torch.full((4,), SIGMA_MIN))
    torch.testing.assert_close(clean, x, rtol=1e-4, atol=1e-4)


@DEVIATIONS
def test_at_the_highest_level_the_network_says_it_all(sigma_data):
    """With c_skip almost 0, x = sigma z of length 80 is left out; c_out is almost sigma_data."""
    path, x = consistency(sigma_data=sigma_data), SIGMA_MAX * torch.randn(4, 3, 8, 8, generator=generator())
    clean = path.clean(lambda x, t: (t / 250).view(-1, 1, 1, 1).expand_as(x), points(path, x, SIGMA_MAX),
                       torch.full((4,), SIGMA_MAX))  # fmt: skip
    message = sigma_data * math.log(SIGMA_MAX)
    torch.testing.assert_close(clean, torch.full_like(x, message), rtol=0.01, atol=sigma_data**2)


def test_levels_end_at_both_sigmas_and_are_even_in_their_seventh_root():
    levels = noise_levels(11)
    assert levels[0] == pytest.approx(0.002) and levels[-1] == pytest.approx(80)
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(10))


def test_the_recipe_of_2023_has_its_published_levels_and_teacher():
    """s_0 = 2, s_1 = 150: 2 to 151 levels in 800,000 steps; mu_0 = 0.9; all intervals alike likely; no weight."""
    path = consistency(800_000, recipe="ct", teacher=lambda x, t: 0 * x)
    assert [intervals(step, 800_000, "ct") + 1 for step in (0, 200_000, None)] == [2, 76, 151]
    assert path.keep(0) == pytest.approx(0.9) and path.keep(799_999) == pytest.approx(0.9 ** (2 / 151))
    pairs = path.times(40_000, generator(), step=None)
    place = torch.searchsorted(noise_levels(151).float(), pairs[:, 1].contiguous())
    counted = torch.bincount(place, minlength=150)
    assert len(counted) == 150 and 180 < counted.min() and counted.max() < 360  # 267 each, five deviations
    x = torch.randn(8, 3, 4, 4, generator=generator())
    sample = path.sample(x, torch.randn(x.shape, generator=generator(1)), path.times(8, generator(2), step=None))
    upper, lower = sample.t.unbind(1)
    with_teacher = path.loss(lambda x, t: x, sample)
    by_hand = pseudo_huber(path.clean(lambda x, t: x, sample.noisy, upper),
                           path.clean(lambda x, t: 0 * x, sample.target, lower)).mean()  # fmt: skip
    torch.testing.assert_close(with_teacher, by_hand)
    with pytest.raises(ValueError, match="only samples"):
        consistency(9, recipe="ct").loss(lambda x, t: x, sample)


def test_intervals_double_in_eighths_of_the_training():
    steps = (0, 999, 1000, 2000, 6999, 7000, 7999)
    assert [intervals(step, 8000) for step in steps] == [10, 10, 20, 40, 640, 1280, 1280]
    assert intervals(None, 8000) == 1280
    assert [intervals(step, 4) for step in range(4)] == [10, 20, 40, 80]


def test_level_law_is_lognormal():
    """Song & Dhariwal (2023), equation 10: the mass of N(-1.1, 2^2) between the logarithms of neighbouring levels."""
    levels = noise_levels(41)
    mass = norm.cdf(levels.log(), -1.1, 2.0)
    expected = torch.tensor(mass[1:] - mass[:-1])
    torch.testing.assert_close(level_law(levels), expected / expected.sum())


@DEVIATIONS
def test_a_sample_holds_the_same_noise_at_neighbouring_levels_with_unit_variance(sigma_data):
    path = consistency(sigma_data=sigma_data)
    clean, noise = sigma_data * torch.randn(64, 3, 2, 2, generator=generator()), torch.randn(64, 3, 2, 2)
    t = path.times(64, generator(), step=1500)
    sample = path.sample(clean, noise, t)
    for noisy, sigma in ((sample.noisy, t[:, 0]), (sample.target, t[:, 1])):
        expected = (clean + sigma.view(-1, 1, 1, 1) * noise) / (sigma**2 + sigma_data**2).sqrt().view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, expected)
        assert float(noisy.std()) == pytest.approx(1, abs=0.15)
    levels = noise_levels(21).float()
    place = torch.searchsorted(levels, t[:, 1].contiguous())
    assert torch.equal(levels[place], t[:, 1]) and torch.equal(levels[place + 1], t[:, 0])


def test_levels_are_drawn_by_their_law():
    lower = consistency().times(20000, generator(), step=0)[:, 1].contiguous()
    levels = noise_levels(11)
    share = torch.bincount(torch.searchsorted(levels.float(), lower), minlength=10) / 20000
    torch.testing.assert_close(share.double(), level_law(levels), rtol=0, atol=0.012)


def test_pseudo_huber_by_hand():
    """sqrt(|x - y|^2 + c^2) - c, c = 0.00054 sqrt(12): 0 for equal images, almost the distance for different ones."""
    x = torch.zeros(2, 3, 2, 2)
    y = x.clone()
    y[1, 0, 0, 0], y[1, 2, 1, 1] = 3.0, 4.0
    c = 0.00054 * math.sqrt(12)
    torch.testing.assert_close(pseudo_huber(x, y), torch.tensor([0.0, math.sqrt(25 + c * c) - c]))


def by_hand(x, sigma, weight, sigma_data):
    """c_skip x + c_out (w c_in x + log sigma), in float64, of x = clean + sigma e."""
    x, sigma, d2 = x.double(), sigma.double().view(-1, 1, 1, 1), sigma_data**2
    c_skip = d2 / ((sigma - 0.002) ** 2 + d2)
    c_out = (sigma - 0.002) * sigma_data / (sigma**2 + d2).sqrt()
    return c_skip * x + c_out * (weight * x / (sigma**2 + d2).sqrt() + sigma.log())


@DEVIATIONS
def test_loss_and_its_gradient_by_hand(sigma_data):
    """The mean of d(f(x + sigma_{i+1} z), f(x + sigma_i z)) / (sigma_{i+1} - sigma_i); the target has no gradient."""
    path = consistency(sigma_data=sigma_data)
    clean, noise = (torch.randn(6, 3, 2, 2, generator=generator(seed)) for seed in (1, 2))
    t = path.times(6, generator(), step=0)
    ours = torch.tensor(0.7, requires_grad=True)
    loss = path.loss(lambda x, t: ours * x + (t / 250).view(-1, 1, 1, 1), path.sample(clean, noise, t))
    loss.backward()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    upper, lower = (s.view(-1, 1, 1, 1) for s in t.unbind(1))
    learned = by_hand(clean + upper * noise, upper, weight, sigma_data)
    target = by_hand(clean + lower * noise, lower, weight, sigma_data).detach()
    c = 0.00054 * math.sqrt(12)
    distance = ((learned - target).square().sum(dim=(1, 2, 3)) + c * c).sqrt() - c
    expected = (distance / (t[:, 0] - t[:, 1]).double()).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(ours.grad.double(), weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "finest"), [(1, 40), (2, 40), (3, 40), (5, 40), (40, 40), (50, 50)])
def test_sampling_levels_are_those_of_diffusers(count, finest):
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=finest)
    scheduler.set_timesteps(count)
    path = consistency()
    levels = path.levels(count, "trailing")
    sigmas = torch.tensor([level.t for level in levels]).div(250).exp()
    torch.testing.assert_close(sigmas, scheduler.sigmas[:-1], rtol=1e-4, atol=0)
    start = path.start(torch.ones(1))
    torch.testing.assert_close(start, torch.tensor([levels[0].sigma]), rtol=1e-6, atol=0)
    for level, sigma in zip(levels, scheduler.sigmas.tolist(), strict=False):
        assert level.alpha == pytest.approx((sigma**2 + 0.25) ** -0.5, rel=1e-5)
        assert level.sigma == pytest.approx(level.alpha * math.sqrt(max(sigma**2 - 0.002**2, 0)), rel=1e-3, abs=1e-5)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="sampling_steps=0: needs 1 or more"):
        consistency().levels(0, "trailing")


def test_other_grids_and_lengths_are_refused():
    with pytest.raises(ValueError, match="spacing=leading"):
        consistency().levels(1, "leading")
    with pytest.raises(ValueError, match="training_steps=0"):
        consistency(training_steps=0)


def test_without_a_metric_the_loss_is_refused():
    path = consistency(metric=None)
    sample = path.sample(torch.zeros(2, 3), torch.ones(2, 3), path.times(2, generator()))
    with pytest.raises(ValueError, match="without its metric"):
        path.loss(lambda x, t: x, sample)
