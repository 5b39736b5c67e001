"""DDIM: noising and loss by hand, sampling against analytic denoisers, inversion."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.model import ImageModel, PixelCoder
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Ddpm
from immiscible_policy.solver import Solver
from tests.image.mixture import ALPHA_BARS, DiffusionOracle, Mixture, assert_recovers
from tests.image.specs import calm, model_of, tiny_spec
from tests.random_numbers import generator

SCALES = pytest.mark.parametrize("data_scale", [0.5, 1.0, 4.0])


class GaussianDenoiser(torch.nn.Module):
    """The exact noise prediction for data N(mean, std^2) in every number, as diffused.

    With x_t = a x_0 + s e, E[e | x_t] = s (x_t - a mean) / (a^2 std^2 + s^2).
    """

    def __init__(self, mean, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t):
        a2 = ALPHA_BARS.to(x)[t].view(-1, 1, 1, 1)
        s2 = 1 - a2
        return SimpleNamespace(sample=s2.sqrt() * (x - a2.sqrt() * self.mean) / (a2 * self.std**2 + s2))


def diffusion(denoiser=None, size=8, **options):
    return model_of("ddim", denoiser, size, **options)


def ddim(steps: int) -> Solver:
    return Solver("ddim", steps)


@SCALES
def test_noised_batch_by_hand(data_scale):
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps with x = data_scale * pixels, for which eps is chosen."""
    model, pixels, seen = diffusion(data_scale=data_scale), torch.rand(6, 3, 8, 8) * 2 - 1, {}
    chosen = torch.randn(6, 3, 8, 8, generator=generator(1))

    def select(x, **given):
        seen.update(x=x, **given)
        return chosen

    drawn = generator()
    noisy, noise, t = model.noised(pixels, select, step=7, generator=drawn)
    torch.testing.assert_close(seen["x"], pixels * data_scale)
    assert seen["step"] == 7 and seen["generator"] is drawn and torch.equal(noise, chosen)
    a2 = ALPHA_BARS.float()[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy, a2.sqrt() * seen["x"] + (1 - a2).sqrt() * chosen, rtol=1e-4, atol=1e-5)


def test_loss_by_hand():
    """A denoiser that always says 3: the loss is the mean of (3 - eps)^2."""
    model = diffusion()
    model.denoiser.forward = lambda x, t: SimpleNamespace(sample=torch.full_like(x, 3.0))
    batch = model.noised(torch.zeros(4, 3, 8, 8), make_selector("vanilla"), generator=generator())
    torch.testing.assert_close(model.loss(batch), (3 - batch.target).square().mean())


@SCALES
def test_with_one_training_image_every_layer_predicts_it(data_scale):
    """For data that is one image, the exact denoiser implies that image at every step, from any noise."""
    pixels = torch.rand(1, 3, 8, 8, generator=generator()) * 1.8 - 0.9
    model = diffusion(GaussianDenoiser(pixels * data_scale, 0.0), data_scale=data_scale)
    result = model.sample(torch.randn(4, 3, 8, 8, generator=generator(1)), ddim(20))
    torch.testing.assert_close(result.images, pixels.expand(4, -1, -1, -1), rtol=0, atol=2e-3)
    torch.testing.assert_close(result.predicted / data_scale, pixels.expand(20, 4, -1, -1, -1), rtol=0, atol=2e-2)


@SCALES
def test_ddim_recovers_the_law_of_gaussian_data(data_scale):
    """Pixels N(0.1, 0.2^2): the samples have this mean and spread, and follow the start noise."""
    model = diffusion(GaussianDenoiser(0.1 * data_scale, 0.2 * data_scale), data_scale=data_scale)
    noise = torch.randn(64, 3, 8, 8, generator=generator())
    result = model.sample(noise, ddim(500)).images
    torch.testing.assert_close(result, 0.1 + 0.2 * noise, rtol=0, atol=0.03)


@SCALES
def test_ddim_recovers_a_mixture(data_scale):
    model = diffusion(DiffusionOracle(Mixture(data_scale)), size=1, data_scale=data_scale)
    assert_recovers(model.sample(torch.randn(4000, 3, 1, 1, generator=generator()), ddim(500)).images)


def test_ddim_is_invertible():
    """With eta = 0 a step down, x_s = a_s x_0 + s_s e with x_0 and e predicted at x_t, is solved for x_t.

    Iterating x_t = a_t x_0 + s_t e, x_0 = (x_s - s_s e) / a_s, converges: e changes little over one step.
    """
    oracle, steps = DiffusionOracle(Mixture()), 250
    noise = torch.randn(200, 3, 1, 1, generator=generator())
    below = diffusion(oracle, size=1).sample(noise, ddim(steps)).images.double()
    ends = torch.cat([torch.ones(1, dtype=torch.float64), ALPHA_BARS[3::4]])
    for t, lower, upper in zip(range(3, 1000, 4), ends[:-1], ends[1:], strict=True):
        x = below
        for _ in range(8):
            eps = oracle(x, torch.tensor([t])).sample
            x = upper.sqrt() * (below - (1 - lower).sqrt() * eps) / lower.sqrt() + (1 - upper).sqrt() * eps
        below = x
    torch.testing.assert_close(below, noise.double(), rtol=0, atol=2e-3)


def test_ddim_is_a_function_of_the_start_noise_alone():
    model = build_image_model(tiny_spec()).eval()
    noise = torch.randn(5, 3, 8, 8, generator=generator())
    result = model.sample(noise, ddim(10))
    torch.manual_seed(99)
    again = model.sample(noise, ddim(10))
    assert torch.equal(result.images, again.images) and torch.equal(result.predicted, again.predicted)
    torch.testing.assert_close(model.sample(noise[2:3], ddim(10)).images, result.images[2:3], rtol=1e-3, atol=1e-4)


def test_the_layers_are_linearly_spaced_and_the_last_prediction_is_the_sample():
    model = build_image_model(tiny_spec()).eval()
    noise = torch.randn(2, 3, 8, 8, generator=generator())
    result = model.sample(noise, ddim(4))
    assert result.t.tolist() == [999, 749, 499, 249]
    assert result.predicted.shape == (4, 2, 3, 8, 8)
    torch.testing.assert_close(result.predicted[-1], result.images)
    assert model.sample(noise).t.tolist() == list(range(999, 0, -20))


@SCALES
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_it_steps_as_diffusers_does(steps, prediction, data_scale):
    """Through its own DDIM scheduler over trailing times, with the same clipping."""
    model = calm(build_image_model(tiny_spec(data_scale=data_scale, prediction=prediction)))
    noise = torch.randn(3, 3, 8, 8, generator=generator())
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction,
        clip_sample_range=data_scale,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x, predicted = noise, []
    with torch.no_grad():
        for t in scheduler.timesteps:
            x, clean = scheduler.step(model.denoiser(x, t).sample, t, x, eta=0.0, return_dict=False)
            predicted.append(clean)
    result = model.sample(noise, ddim(steps))
    assert result.t.tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(result.predicted, torch.stack(predicted), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.images, x / data_scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 2000])
def test_steps_that_the_chain_has_not_are_refused(steps):
    with pytest.raises(ValueError, match=f"sampling_steps={steps}"):
        diffusion().sample(torch.zeros(1, 3, 8, 8), ddim(steps))


def test_the_adaptive_solver_is_for_flow_matching_alone():
    with pytest.raises(ValueError, match="flow matching alone"):
        ImageModel(Ddpm(1000, betas="linear"), torch.nn.Identity(), PixelCoder(8))
