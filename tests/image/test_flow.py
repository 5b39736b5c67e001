"""Flow matching: paths and loss by hand, Euler and the adaptive solver against analytic velocities."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.noise import make_selector
from immiscible_policy.solver import Solver
from tests.image.mixture import MEANS, FlowOracle, Mixture, assert_recovers
from tests.image.specs import model_of
from tests.random_numbers import generator

SCALES = pytest.mark.parametrize("data_scale", [0.5, 1.0, 4.0])


def flow(denoiser=None, size=8, **options):
    return model_of("flow", denoiser, size, **options)


def euler(steps: int | None) -> Solver | None:
    return None if steps is None else Solver("euler", steps)


class Quadratic(torch.nn.Module):
    """Says x^2 + 1000 t, to be sure that both arrive."""

    def forward(self, x, time):
        return SimpleNamespace(sample=x.square() + time.view(-1, 1, 1, 1))


@SCALES
def test_the_paths_run_straight_from_the_chosen_noise_to_the_image(data_scale):
    pixels, chosen = torch.rand(50, 3, 2, 2) * 2 - 1, torch.randn(50, 3, 2, 2, generator=generator(1))
    seen = {}

    def select(x, **given):
        seen.update(x=x, **given)
        return chosen

    drawn = generator()
    x, velocity, t = flow(size=2, data_scale=data_scale).noised(pixels, select, step=7, generator=drawn)
    assert seen["step"] == 7 and seen["generator"] is drawn
    torch.testing.assert_close(seen["x"], data_scale * pixels)
    assert 0 <= float(t.min()) < 0.1 and 0.9 < float(t.max()) < 1
    t = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(x - t * velocity, chosen, rtol=1e-4, atol=1e-5)  # back to t = 0
    torch.testing.assert_close(x + (1 - t) * velocity, data_scale * pixels, rtol=1e-4, atol=1e-5)  # on to t = 1


def test_the_ends_of_a_path_are_noise_and_image_exactly(monkeypatch):
    pixels, chosen = torch.rand(4, 3, 2, 2) * 2 - 1, torch.randn(4, 3, 2, 2, generator=generator(1))
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.tensor([0.0, 1.0]).repeat(n // 2))
    x = flow(size=2).noised(pixels, lambda x, **_: chosen, generator=generator()).noisy
    assert torch.equal(x[::2], chosen[::2]) and torch.equal(x[1::2], pixels[1::2])


def test_loss_by_hand():
    """The mean of (v(x_t, 1000 t) - (x_1 - x_0))^2, as torchcfm's ConditionalFlowMatcher with sigma = 0 has it.

    That one's x_t is t x_1 + (1 - t) x_0 and its target x_1 - x_0, written out here in float64.
    """
    x0, x1 = (torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=generator(seed)) for seed in (1, 2))
    model = flow(Quadratic(), size=2)
    batch = model.noised(x1.float(), lambda x, **_: x0.float(), generator=generator())
    t = batch.t.double().view(-1, 1, 1, 1)
    xt = t * x1 + (1 - t) * x0
    by_hand = (xt**2 + 1000 * t - (x1 - x0)).square().mean()
    torch.testing.assert_close(model.loss(batch).double(), by_hand, rtol=1e-5, atol=0)


@SCALES
@pytest.mark.parametrize("steps", [100, None])
def test_flow_recovers_a_mixture(steps, data_scale):
    model = flow(FlowOracle(Mixture(data_scale)), size=1, data_scale=data_scale)
    noise = torch.randn(4000, 3, 1, 1, generator=generator())
    tolerances = {} if steps is None else {"std": 0.015}  # Euler's error narrows the modes
    assert_recovers(model.sample(noise, euler(steps)).images, **tolerances)


def test_euler_tends_to_the_adaptive_solution():
    """The error of Euler's method halves with its step."""
    model = flow(FlowOracle(Mixture()), size=1)
    noise = torch.randn(100, 3, 1, 1, generator=generator())
    exact = model.sample(noise).images
    coarse, fine = (float((model.sample(noise, euler(steps)).images - exact).abs().median()) for steps in (100, 200))
    assert coarse < 0.02
    assert fine / coarse == pytest.approx(0.5, abs=0.1)


def test_euler_calls_the_network_once_a_step_and_shows_what_it_predicts():
    oracle = FlowOracle(Mixture(means=MEANS[:1], weights=torch.ones(1), std=1e-6))
    result = flow(oracle, size=1).sample(torch.randn(3, 3, 1, 1, generator=generator()), euler(4))
    assert oracle.calls == 4
    assert result.t.tolist() == [0, 250, 500, 750]
    expected = MEANS[0].view(1, 3, 1, 1).expand(4, 3, 3, 1, 1)  # straight to the only point
    torch.testing.assert_close(result.predicted, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.images, expected[0], rtol=0, atol=1e-5)


def test_the_adaptive_solver_shows_its_end():
    result = flow(FlowOracle(Mixture()), size=1).sample(torch.randn(3, 3, 1, 1, generator=generator()))
    assert result.t.tolist() == [1] and torch.equal(result.predicted.clamp(-1, 1), result.images[None])


def test_samples_are_pixels():
    """A network that runs away leaves pixels at the ends of their range."""
    model = flow(data_scale=2.0)
    model.denoiser.forward = lambda x, t: SimpleNamespace(sample=torch.full_like(x, 9.0))
    assert float(model.sample(torch.zeros(1, 3, 8, 8), euler(1)).images.max()) == 1


def test_a_selector_changes_the_paths_alone():
    """The same generator gives KNN and vanilla other noise, whose distance to the images KNN makes smaller."""
    pixels = torch.rand(64, 3, 4, 4, generator=generator(3)) * 2 - 1
    distance = {}
    for name, options in (("vanilla", {}), ("knn", {"k": 16})):
        batch = flow(size=4).noised(pixels, make_selector(name, **options), step=0, generator=generator())
        distance[name] = float(batch.target.flatten(1).norm(dim=1).mean())
    assert distance["knn"] < 0.98 * distance["vanilla"]
