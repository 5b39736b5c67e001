"""Consistency training: boundary, curriculum, loss by hand, one and several steps against the exact function."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import norm

from immiscible_policy.image.consistency import (
    SIGMA_MAX,
    SIGMA_MIN,
    ConsistencyBatch,
    ConsistencyModel,
    intervals,
    level_law,
    noise_levels,
    pseudo_huber,
)
from immiscible_policy.noise import make_selector
from tests.image.mixture import MEANS, ConsistencyOracle, Mixture, assert_recovers

SCALES = pytest.mark.parametrize("data_scale", [0.5, 1.0, 4.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def consistency(denoiser=None, size=8, training_steps=8000, **options) -> ConsistencyModel:
    network = torch.nn.Identity() if denoiser is None else denoiser
    return ConsistencyModel(network, size=size, training_steps=training_steps, **options)


class Affine(torch.nn.Module):
    """Says w x + time / 250, the logarithm of the noise level."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x, time):
        return SimpleNamespace(sample=self.weight * x + time.view(-1, 1, 1, 1) / 250)


def by_hand(x, sigma, weight, sigma_data=0.5):
    """c_skip x + c_out (w c_in x + log sigma), in float64."""
    x, sigma, d2 = x.double(), sigma.double().view(-1, 1, 1, 1), sigma_data**2
    c_skip = d2 / ((sigma - 0.002) ** 2 + d2)
    c_out = (sigma - 0.002) * sigma_data / (sigma**2 + d2).sqrt()
    return c_skip * x + c_out * (weight * x / (sigma**2 + d2).sqrt() + sigma.log())


@SCALES
def test_at_the_lowest_level_nothing_is_changed_whatever_the_network_says(data_scale):
    x = torch.randn(4, 3, 8, 8, generator=generator())
    found = consistency(Affine(1e3), data_scale=data_scale).consistency(x, torch.full((4,), SIGMA_MIN))
    torch.testing.assert_close(found, x)


@SCALES
def test_at_the_highest_level_the_network_says_it_all(data_scale):
    """With c_skip almost 0, x = sigma z of length 80 is left out; c_out is almost sigma_data."""
    x = SIGMA_MAX * torch.randn(4, 3, 8, 8, generator=generator())
    model = consistency(Affine(0.0), data_scale=data_scale)
    found = model.consistency(x, torch.full((4,), SIGMA_MAX))
    said = 0.5 * data_scale * math.log(SIGMA_MAX)
    torch.testing.assert_close(found, torch.full_like(x, said), rtol=0.01, atol=0.25 * data_scale**2)


def test_levels_end_at_both_sigmas_and_are_even_in_their_seventh_root():
    levels = noise_levels(11)
    assert levels[0] == pytest.approx(0.002) and levels[-1] == pytest.approx(80)
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(10))


def test_intervals_double_in_eighths_of_the_training():
    assert [intervals(step, 8000) for step in (0, 999, 1000, 2000, 6999, 7000, 7999)] == [
        10,
        10,
        20,
        40,
        640,
        1280,
        1280,
    ]
    assert intervals(None, 8000) == 1280
    assert [intervals(step, 4) for step in range(4)] == [10, 20, 40, 80]


def test_level_law_is_lognormal():
    """Song & Dhariwal (2023), equation 10: the mass of N(-1.1, 2^2) between the logarithms of neighbouring levels."""
    levels = noise_levels(41)
    mass = norm.cdf(levels.log(), -1.1, 2.0)
    expected = torch.tensor(mass[1:] - mass[:-1])
    torch.testing.assert_close(level_law(levels), expected / expected.sum())


@SCALES
def test_a_batch_holds_the_chosen_noise_at_neighbouring_levels(data_scale):
    pixels, chosen = torch.rand(64, 3, 2, 2) * 2 - 1, torch.randn(64, 3, 2, 2, generator=generator(1))
    seen = {}

    def select(x, **given):
        seen.update(x=x, **given)
        return chosen

    drawn = generator()
    batch = consistency(data_scale=data_scale).noised(pixels, select, step=1500, generator=drawn)
    assert seen["step"] == 1500 and seen["generator"] is drawn
    torch.testing.assert_close(seen["x"], data_scale * pixels)
    for noisy, sigma in ((batch.noisy, batch.sigma), (batch.cleaner, batch.lower)):
        torch.testing.assert_close(noisy, data_scale * pixels + sigma.view(-1, 1, 1, 1) * chosen)
    levels = noise_levels(21).float()
    place = torch.searchsorted(levels, batch.lower)
    assert torch.equal(levels[place], batch.lower) and torch.equal(levels[place + 1], batch.sigma)


def test_levels_are_drawn_by_their_law():
    pixels = torch.zeros(20000, 3, 1, 1)
    batch = consistency(size=1).noised(pixels, make_selector("vanilla"), step=0, generator=generator())
    levels = noise_levels(11)
    share = torch.bincount(torch.searchsorted(levels.float(), batch.lower), minlength=10) / 20000
    torch.testing.assert_close(share.double(), level_law(levels), rtol=0, atol=0.012)


def test_pseudo_huber_by_hand():
    """sqrt(|x - y|^2 + c^2) - c, c = 0.00054 sqrt(12): 0 for equal images, almost the distance for different ones."""
    x = torch.zeros(2, 3, 2, 2)
    y = x.clone()
    y[1, 0, 0, 0], y[1, 2, 1, 1] = 3.0, 4.0
    c = 0.00054 * math.sqrt(12)
    torch.testing.assert_close(pseudo_huber(x, y), torch.tensor([0.0, math.sqrt(25 + c * c) - c]))


@SCALES
def test_loss_and_its_gradient_by_hand(data_scale):
    """The mean of d(f(x + sigma_{i+1} z), f(x + sigma_i z)) / (sigma_{i+1} - sigma_i); the target has no gradient."""
    model = consistency(Affine(0.7), data_scale=data_scale)
    pixels = torch.rand(6, 3, 2, 2, generator=generator(1)) * 2 - 1
    batch = model.noised(pixels, make_selector("vanilla"), step=0, generator=generator())
    weight = torch.tensor(model.denoiser.weight.item(), dtype=torch.float64, requires_grad=True)
    learned = by_hand(batch.noisy, batch.sigma, weight, 0.5 * data_scale)
    target = by_hand(batch.cleaner, batch.lower, weight, 0.5 * data_scale).detach()
    c = 0.00054 * math.sqrt(12)
    distance = (((learned - target) / data_scale).square().sum(dim=(1, 2, 3)) + c * c).sqrt() - c
    expected = (distance / (batch.sigma.double() - batch.lower.double())).mean()
    expected.backward()
    loss = model.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(model.denoiser.weight.grad.double(), weight.grad, rtol=1e-3, atol=1e-3)


def test_the_exact_function_of_one_image_has_no_loss():
    """All points x + sigma z of one z lie on one path of data that is one point x, so that f agrees along it."""
    mixture = Mixture(means=MEANS[:1], weights=torch.ones(1), std=1e-6)
    pixels = MEANS[:1].view(1, 3, 1, 1).expand(20, 3, 1, 1)
    batch = consistency(size=1).noised(pixels, make_selector("vanilla"), step=0, generator=generator())
    exact = consistency(ConsistencyOracle(mixture, 0.5), size=1)
    other = consistency(ConsistencyOracle(Mixture(), 0.5), size=1)
    assert float(exact.loss(batch)) < 1e-2 < float(other.loss(batch))


def test_target_and_learner_drop_the_same_units():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = torch.nn.Sequential(torch.nn.Dropout(0.3))

        def forward(self, x, time):
            return SimpleNamespace(sample=self.inside(x))

    compared = []

    def metric(x, y):
        compared.append((x, y))
        return pseudo_huber(x, y)

    model = consistency(Dropping(), metric=metric).train()
    x, sigma = torch.ones(4, 3, 8, 8), torch.ones(4)
    model.loss(ConsistencyBatch(x, x, sigma, sigma))
    model.loss(ConsistencyBatch(x, x, sigma, sigma))
    (first, target), (second, _) = compared
    assert torch.equal(first, target)
    assert not torch.equal(first, second)  # another call, other units
    assert isinstance(model.denoiser.inside[0], torch.nn.Dropout)  # by which training knows that there is any
    dropped = model.denoiser.inside(torch.ones(100_000))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.max()) == pytest.approx(1 / 0.7)
    assert torch.equal(model.eval().denoiser.inside(x), x)


@SCALES
@pytest.mark.parametrize("steps", [None, 3])
def test_consistency_recovers_a_mixture(steps, data_scale):
    """In one call, and in three with fresh noise in between."""
    oracle = ConsistencyOracle(Mixture(data_scale), 0.5 * data_scale)
    model = consistency(oracle, size=1, data_scale=data_scale)
    noise = torch.randn(4000, 3, 1, 1, generator=generator())
    found = model.sample(noise, steps, generator=generator(1))
    assert found.predicted.shape == (steps or 1, 4000, 3, 1, 1) and found.t[0] == SIGMA_MAX
    assert torch.equal(found.predicted[-1], found.images)
    assert_recovers(found.images)


def test_several_steps_take_their_noise_from_the_generator():
    model, noise = consistency(Affine(0.1)), torch.randn(2, 3, 8, 8, generator=generator())
    first, again, other = (model.sample(noise, 2, generator=generator(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="sampling_steps=2 needs a generator"):
        model.sample(noise, 2)


@pytest.mark.parametrize("steps", [0, 41])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"sampling_steps={steps}"):
        consistency().sample(torch.zeros(1, 3, 8, 8), steps, generator=generator())


def test_no_training_steps_are_refused():
    with pytest.raises(ValueError, match="training_steps=0"):
        consistency(training_steps=0)


def test_without_a_metric_the_loss_is_refused():
    model = consistency(Affine(0.1), metric=None)
    batch = model.noised(torch.zeros(2, 3, 8, 8), make_selector("vanilla"), generator=generator())
    with pytest.raises(ValueError, match="without its metric"):
        model.loss(batch)
