"""Consistency models: what selection sees, dropout of target and learner, sampling against the exact function."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.noise import make_selector
from immiscible_policy.path.consistency import SIGMA_MAX, pseudo_huber
from immiscible_policy.solver import Solver
from tests.image.mixture import MEANS, ConsistencyOracle, Mixture, assert_recovers
from tests.image.specs import model_of
from tests.random_numbers import generator

SCALES = pytest.mark.parametrize("data_scale", [0.5, 1.0, 4.0])


def consistency(denoiser=None, size=8, **options):
    return model_of("consistency", denoiser, size, **options)


@SCALES
def test_noise_is_chosen_for_the_scaled_images_before_it_is_multiplied(data_scale):
    pixels, chosen = torch.rand(64, 3, 2, 2) * 2 - 1, torch.randn(64, 3, 2, 2, generator=generator(1))
    seen = {}

    def select(x, **given):
        seen.update(x=x, **given)
        return chosen

    drawn, model = generator(), consistency(size=2, data_scale=data_scale)
    batch = model.noised(pixels, select, step=1500, generator=drawn)
    assert seen["step"] == 1500 and seen["generator"] is drawn
    torch.testing.assert_close(seen["x"], data_scale * pixels)
    for noisy, expected in zip(batch, model.path.sample(data_scale * pixels, chosen, batch.t), strict=True):
        assert torch.equal(noisy, expected)


@SCALES
def test_the_metric_compares_pixels(data_scale):
    """A data set of points that are twice as far apart is no further apart to the metric."""
    compared = []

    def metric(x, y):
        compared.append((x, y))
        return pseudo_huber(x, y)

    class Says(torch.nn.Module):  # one with which f is data_scale times the same image, at any scale
        def forward(self, x, time):
            return SimpleNamespace(sample=torch.zeros_like(x))

    model = consistency(Says(), size=2, data_scale=data_scale, metric=metric)
    pixels = torch.rand(6, 3, 2, 2, generator=generator(1)) * 2 - 1
    model.loss(model.noised(pixels, lambda x, **_: torch.zeros_like(x), step=0, generator=generator()))
    learned, target = compared[0]
    variance, levels = (0.5 * data_scale) ** 2, model.path.times(6, generator(), step=0)
    for clean, sigma in zip((learned, target), levels.unbind(1), strict=True):
        c_skip = variance / ((sigma - 0.002) ** 2 + variance)
        torch.testing.assert_close(clean, c_skip.view(-1, 1, 1, 1) * pixels, rtol=1e-4, atol=1e-5)


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
    x, t = torch.ones(4, 3, 8, 8), torch.ones(4, 2)
    batch = model.path.sample(x, x, t)
    model.loss(batch)
    model.loss(batch)
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
    result = model.sample(noise, steps and Solver("renoise", steps), generator=generator(1))
    assert result.predicted.shape == (steps or 1, 4000, 3, 1, 1)
    assert float((result.t[0] / 250).exp()) == pytest.approx(SIGMA_MAX)
    torch.testing.assert_close(result.predicted[-1] / data_scale, result.images)
    assert_recovers(result.images)


def test_several_steps_take_their_noise_from_the_generator():
    model = consistency()
    model.denoiser.forward = lambda x, t: SimpleNamespace(sample=0.1 * x)
    noise, twice = torch.randn(2, 3, 8, 8, generator=generator()), Solver("renoise", 2)
    first, again, other = (model.sample(noise, twice, generator=generator(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="sampling_steps=2 needs a generator"):
        model.sample(noise, twice)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="sampling_steps=0: needs 1 or more"):
        consistency().choose(steps=0)
