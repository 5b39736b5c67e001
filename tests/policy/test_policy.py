"""The policy: noising and loss by hand, units on either side, and every method's law."""

import pytest
import torch

from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Ddpm, Flow, Regression
from immiscible_policy.policy import Normalizer, NumberObserver, Policy
from immiscible_policy.solver import Solver
from tests.path.analytic import MixtureNetwork, squared_cosine_alphas
from tests.random_numbers import generators

PATHS = [Ddpm(100), Ddpm(100, prediction="sample"), Ddpm(100, prediction="v_prediction"), Flow()]


class AnalyticNetwork(torch.nn.Module):
    """The exact output for data N(mean, std^2) in every number, for any features, given the time as the U-Net is."""

    def __init__(self, path, mean, std):
        super().__init__()
        self.path, self.exact = path, MixtureNetwork(path, [mean], std)

    def forward(self, x, t, features):
        alpha, sigma = self.path.coefficients(t[:1] / 1000 if isinstance(self.path, Flow) else t[:1].long())
        return self.exact(x, float(alpha), float(sigma))


class Zero(torch.nn.Module):
    """Says nothing."""

    def forward(self, x, t, features):
        return torch.zeros_like(x)


def make_policy(network=None, data_scale=1.0, path=None) -> Policy:
    unit = Normalizer(-torch.ones(2), torch.ones(2))
    pixels = Normalizer(torch.tensor([0.0, 100.0]), torch.tensor([200.0, 400.0]))
    return Policy(path or Ddpm(100), network or Zero(), NumberObserver(unit), pixels, horizon=16, data_scale=data_scale)


def small_policy(data_scale=1.0, path=None) -> Policy:
    """A U-Net with random weights, large enough for its predictions to depend on everything."""
    torch.manual_seed(0)
    unet = ConditionalUnet1d(2, 6, step_embed_dim=16, down_dims=(16, 32), groups=4)
    ones, unit = torch.ones(2), Normalizer(-torch.ones(3), torch.ones(3))
    action = Normalizer(-ones, ones)
    return Policy(path or Ddpm(100), unet, NumberObserver(unit), action, horizon=16, data_scale=data_scale).eval()


def observations(count: int) -> torch.Tensor:
    return torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("data_scale", [1.0, 2.5])
def test_noised_batch_by_hand(data_scale):
    """x_t = sqrt(abar_t) data_scale normalise(a) + sqrt(1 - abar_t) eps, with eps chosen for the scaled sample."""
    policy = make_policy(data_scale=data_scale)
    action = torch.rand(6, 16, 2) * 100 + 100
    seen = {}

    def select(x, **options):
        seen.update(x=x, **options)
        return torch.ones_like(x)

    batch = policy.noised(torch.zeros(6, 2, 2), action, select, step=7, generator=torch.Generator().manual_seed(3))
    low, high = torch.tensor([0.0, 100.0]), torch.tensor([200.0, 400.0])
    x = data_scale * (2 * (action - low) / (high - low) - 1)
    torch.testing.assert_close(seen["x"], x)
    assert seen["step"] == 7 and seen["condition"].shape == (6, 4)
    alphas = squared_cosine_alphas(100)[batch.path.t].float()[:, None, None]
    torch.testing.assert_close(batch.path.noisy, alphas.sqrt() * x + (1 - alphas).sqrt(), rtol=1e-3, atol=1e-4)
    assert ((batch.path.t >= 0) & (batch.path.t < 100)).all()


def test_chosen_noise_is_used_at_its_levels_and_plain_noise_at_the_others():
    policy = make_policy()
    batch = policy.noised(
        torch.zeros(4000, 2, 2), torch.zeros(4000, 16, 2), lambda x, **_: torch.full_like(x, 7.0), step=0,
        generator=torch.Generator().manual_seed(0), levels=range(30, 60),
    )  # fmt: skip
    inside = (batch.path.t >= 30) & (batch.path.t < 60)
    assert 0 < inside.sum() < 4000 and (batch.path.target[inside] == 7).all()
    assert float(batch.path.target[~inside].mean()) == pytest.approx(0, abs=0.02)
    assert float(batch.path.target[~inside].std()) == pytest.approx(1, abs=0.02)


def test_loss_by_hand():
    """Predicting zero where the noise is e costs the mean of e^2."""
    policy = make_policy()
    batch = policy.noised(
        torch.zeros(4, 2, 2), torch.full((4, 16, 2), 150.0), make_selector("vanilla"), step=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float(policy.loss(batch)) == pytest.approx(float(batch.path.target.square().mean()), rel=1e-6)


def test_every_diffusion_step_is_trained():
    policy = make_policy()
    batch = policy.noised(
        torch.zeros(4000, 2, 2), torch.zeros(4000, 16, 2), make_selector("vanilla"), step=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert set(batch.path.t.tolist()) == set(range(100))


@pytest.mark.parametrize("path", PATHS, ids=["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize("data_scale", [1.0, 3.0])
def test_a_gaussian_comes_back_in_pixels(path, data_scale):
    """Data N(0.3, 0.1^2) in normalised units comes back, whatever data_scale it was learned at."""
    policy = make_policy(AnalyticNetwork(path, 0.3 * data_scale, 0.1 * data_scale), data_scale, path)
    chunk = policy.predict(torch.zeros(500, 2, 2), Solver(path.solvers[0], 100), generators(500))
    normalised = policy.action.normalize(chunk)
    assert float(normalised.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(normalised.std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("path", [*PATHS, Regression((0, 0.9))])
def test_the_unet_prepared_for_all_calls_says_what_it_says_call_by_call(path):
    """A network that is no U-Net is called with (x, t, features); the U-Net prepares what x does not enter."""

    class Wrapped(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet = unet

        def forward(self, x, t, features):
            return self.unet(x, t, features)

    policy, called = small_policy(path=path), small_policy(path=path)
    called.network = Wrapped(called.network)
    solver = Solver(path.solvers[0], 5)
    prepared, plain = (item.predict(observations(4), solver, generators(4)) for item in (policy, called))
    torch.testing.assert_close(prepared, plain, rtol=1e-4, atol=1e-5)


def test_normaliser_maps_the_range_to_one_and_back():
    values = torch.tensor([[0.0, 5.0, 7.0], [10.0, 5.0, 9.0]])
    normalizer = Normalizer.fit(values)
    torch.testing.assert_close(normalizer.normalize(values), torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(values)), values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_policy().predict(torch.zeros(1, 2, 2), Solver("ddim", 101), generators(1)), "sampling_steps=101"),
        (lambda: make_policy(data_scale=0.0), "data_scale=0"),
        (lambda: Normalizer(torch.tensor([float("nan")]), torch.ones(1)), "nan"),
        (
            lambda: make_policy().predict(torch.zeros(2, 2, 2), Solver("ddim", 5), generators(1)),
            "2 observ",
        ),
    ],
)
def test_unusable_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
