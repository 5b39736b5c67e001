"""The diffusion policy: noising and loss by hand, sampled laws against an analytic denoiser."""

import math
from dataclasses import replace

import pytest
import torch

from immiscible_policy.noise import make_selector
from immiscible_policy.policy import DiffusionPolicy, Normalizer, Sampler
from immiscible_policy.training.batches import cut


class GaussianDenoiser(torch.nn.Module):
    """The exact noise prediction for data N(mean, std^2) in every number, at any condition.

    With x_t = a x_0 + s e, E[e | x_t] = s (x_t - a mean) / (a^2 std^2 + s^2).
    """

    def __init__(self, mean: float, std: float, steps: int = 100):
        super().__init__()
        self.mean, self.std = mean, std
        self.alphas = squared_cosine_alphas(steps)

    def forward(self, x, t, condition):
        a2 = self.alphas[t][:, None, None].to(x)
        a, s2 = a2.sqrt(), 1 - a2
        return s2.sqrt() * (x - a * self.mean) / (a2 * self.std**2 + s2)


def squared_cosine_alphas(steps: int) -> torch.Tensor:
    """Cumulative alphas of Nichol and Dhariwal's schedule, written out: beta_i = min(1 - f(i+1)/f(i), 0.999)."""

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def make_policy(denoiser, data_scale=1.0, horizon=16) -> DiffusionPolicy:
    unit = Normalizer(-torch.ones(2), torch.ones(2))
    pixels = Normalizer(torch.tensor([0.0, 100.0]), torch.tensor([200.0, 400.0]))
    return DiffusionPolicy(denoiser, unit, pixels, horizon=horizon, data_scale=data_scale)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed * 10_000 + i) for i in range(count)]


def test_the_noising_is_the_published_schedule():
    policy = make_policy(GaussianDenoiser(0, 1))
    torch.testing.assert_close(policy.noising.alphas_cumprod.double(), squared_cosine_alphas(100), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("data_scale", [1.0, 2.5])
def test_noised_batch_by_hand(data_scale):
    """x_t = sqrt(abar_t) data_scale normalise(a) + sqrt(1 - abar_t) eps, with eps chosen for the scaled sample."""
    policy = make_policy(GaussianDenoiser(0, 1), data_scale)
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
    alphas = squared_cosine_alphas(100)[batch.t].float()[:, None, None]
    torch.testing.assert_close(batch.noisy, alphas.sqrt() * x + (1 - alphas).sqrt(), rtol=1e-3, atol=1e-4)
    assert ((batch.t >= 0) & (batch.t < 100)).all()


def test_chosen_noise_is_used_at_its_levels_and_plain_noise_at_the_others():
    policy = make_policy(GaussianDenoiser(0, 1))
    batch = policy.noised(
        torch.zeros(4000, 2, 2), torch.zeros(4000, 16, 2), lambda x, **_: torch.full_like(x, 7.0), step=0,
        generator=torch.Generator().manual_seed(0), levels=range(30, 60),
    )  # fmt: skip
    inside = (batch.t >= 30) & (batch.t < 60)
    assert 0 < inside.sum() < 4000 and (batch.noise[inside] == 7).all()
    assert float(batch.noise[~inside].mean()) == pytest.approx(0, abs=0.02)
    assert float(batch.noise[~inside].std()) == pytest.approx(1, abs=0.02)


def test_loss_by_hand():
    """Predicting zero where the noise is e costs the mean of e^2."""
    zero = torch.nn.Module()
    zero.forward = lambda x, t, c: torch.zeros_like(x)
    policy = make_policy(zero)
    batch = policy.noised(
        torch.zeros(4, 2, 2), torch.full((4, 16, 2), 150.0), make_selector("vanilla"), step=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float(policy.loss(batch)) == pytest.approx(float(batch.noise.square().mean()), rel=1e-6)


def test_every_diffusion_step_is_trained():
    policy = make_policy(GaussianDenoiser(0, 1))
    batch = policy.noised(
        torch.zeros(4000, 2, 2), torch.zeros(4000, 16, 2), make_selector("vanilla"), step=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert set(batch.t.tolist()) == set(range(100))


@pytest.mark.parametrize("sampler", [Sampler("ddpm", 100), Sampler("ddim", 100), Sampler("dpmpp", 100)])
@pytest.mark.parametrize("data_scale", [1.0, 3.0])
def test_samplers_recover_an_analytic_gaussian(sampler, data_scale):
    """Data N(0.3, 0.1^2) in normalised units comes back, in pixels, whatever data_scale it was learned at."""
    policy = make_policy(GaussianDenoiser(0.3 * data_scale, 0.1 * data_scale), data_scale)
    chunk = policy.sample(torch.zeros(500, 2, 2), sampler, generators(500))
    normalised = policy.action.normalize(chunk)
    assert float(normalised.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(normalised.std()) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("steps", [5, 20])
def test_renoising_narrows_a_gaussian_as_by_hand(steps):
    """Each prediction is the posterior mean, noised anew, so a variance v becomes g^2 (a v + 1 - a), less than s^2.

    Here g = sqrt(a) s^2 / (a s^2 + 1 - a) and s^2 is the variance of the data.
    """
    mean, std, alphas = 0.3, 0.2, squared_cosine_alphas(100)
    sampler = Sampler("renoise", steps)
    centre, variance = 0.0, 0.0
    for i, a in enumerate(alphas[sampler.timesteps(100)].tolist()):
        gain = a**0.5 * std**2 / (a * std**2 + 1 - a)
        seen_mean, seen_variance = (a**0.5 * centre, a * variance + 1 - a) if i else (0.0, 1.0)  # starts from N(0, 1)
        centre, variance = mean + gain * (seen_mean - a**0.5 * mean), gain**2 * seen_variance
    policy = make_policy(GaussianDenoiser(mean, std))
    normalised = policy.action.normalize(policy.sample(torch.zeros(2000, 2, 2), sampler, generators(2000)))
    assert float(normalised.mean()) == pytest.approx(centre, abs=0.005)
    assert float(normalised.std()) == pytest.approx(variance**0.5, rel=0.03, abs=0.002)
    assert float(normalised.std()) < 0.95 * std


def test_more_ddim_steps_come_closer_to_the_data():
    policy = make_policy(GaussianDenoiser(0.3, 0.1))

    def error(steps):
        chunk = policy.sample(torch.zeros(500, 2, 2), Sampler("ddim", steps), generators(500))
        normalised = policy.action.normalize(chunk)
        return abs(float(normalised.mean()) - 0.3) + abs(float(normalised.std()) - 0.1)

    assert error(100) < error(20) < error(5)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp", "renoise"])
def test_samples_stay_within_the_clipping_range_times_data_scale(name):
    policy = make_policy(GaussianDenoiser(5.0, 1.0), data_scale=2.0)
    chunk = policy.sample(torch.zeros(20, 2, 2), Sampler(name, 100), generators(20))
    assert float(policy.action.normalize(chunk).abs().max()) <= 1 + 1e-5
    assert float(policy.action.normalize(chunk).max()) > 0.99


@pytest.mark.parametrize("engine", ["fast", "eager"])
@pytest.mark.parametrize(
    "sampler", [Sampler("ddpm", 20), Sampler("ddim", 5), Sampler("dpmpp", 5), Sampler("renoise", 5)]
)
def test_a_row_depends_on_its_own_generator_alone(sampler, engine):
    sampler = replace(sampler, engine=engine)
    policy = make_policy(GaussianDenoiser(0, 0.5))
    many = policy.sample(torch.zeros(5, 2, 2), sampler, generators(5))
    torch.testing.assert_close(policy.sample(torch.zeros(2, 2, 2), sampler, generators(5)[3:]), many[3:])


def test_splitting_a_batch_keeps_its_rows():
    policy = make_policy(GaussianDenoiser(0, 1))
    batch = policy.noised(
        torch.zeros(8, 2, 2), torch.zeros(8, 16, 2), make_selector("knn"), step=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = cut(batch, 3)
    assert [len(part.t) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.noise for part in parts]), batch.noise)


def test_normaliser_maps_the_range_to_one_and_back():
    values = torch.tensor([[0.0, 5.0, 7.0], [10.0, 5.0, 9.0]])
    normalizer = Normalizer.fit(values)
    torch.testing.assert_close(normalizer.normalize(values), torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(values)), values)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sampler("euler", 10), "sampler=euler"),
        (lambda: Sampler("ddim", 0), "sampling_steps=0"),
        (lambda: make_policy(GaussianDenoiser(0, 1)).scheduler(Sampler("ddim", 101)), "sampling_steps=101"),
        (lambda: make_policy(GaussianDenoiser(0, 1), data_scale=0.0), "data_scale=0"),
        (lambda: Normalizer(torch.tensor([float("nan")]), torch.ones(1)), "nan"),
        (
            lambda: make_policy(GaussianDenoiser(0, 1)).sample(torch.zeros(2, 2, 2), Sampler(), generators(1)),
            "2 observ",
        ),
    ],
)
def test_unusable_values_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
