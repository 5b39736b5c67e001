"""The controls: losses and chunks against hand algebra, and nothing random in how they act."""

import pytest
import torch

from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Regression
from immiscible_policy.path.regression import MIP, REGRESSION
from immiscible_policy.policy import Normalizer, NumberObserver, Policy
from immiscible_policy.solver import Solver
from immiscible_policy.training.batches import cut
from tests.random_numbers import generator, generators

TIMES = {"regression": REGRESSION, "mip": MIP}
DIRECT = Solver("direct", 1)

LOW, HIGH = torch.tensor([0.0, 100.0]), torch.tensor([200.0, 400.0])
"""Range of the actions in px."""


class Affine(torch.nn.Module):
    """f(x, step, features) = scale x + step / 100 + the first feature."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x, step, features):
        return self.scale * x + step[:, None, None] / 100 + features[:, :1, None]


def make_policy(method, denoiser, data_scale=1.0) -> Policy:
    unit = Normalizer(-torch.ones(3), torch.ones(3))
    path, action = Regression(TIMES[method]), Normalizer(LOW, HIGH)
    return Policy(path, denoiser, NumberObserver(unit), action, horizon=8, data_scale=data_scale)


def make_unet(seed: int = 0) -> ConditionalUnet1d:
    torch.manual_seed(seed)
    return ConditionalUnet1d(2, 6, step_embed_dim=8, down_dims=(8, 16), groups=4)


def windows(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (rows, 2, 3) and action chunks (rows, 8, 2) in px."""
    g = generator(seed)
    return torch.randn(rows, 2, 3, generator=g), LOW + (HIGH - LOW) * torch.rand(rows, 8, 2, generator=g)


def noised(policy, observation, action, seed: int = 3):
    return policy.noised(observation, action, make_selector("vanilla"), step=7, generator=generator(seed))


@pytest.mark.parametrize("method", TIMES)
@pytest.mark.parametrize("data_scale", [1.0, 2.5])
def test_a_batch_by_hand(method, data_scale):
    """The target is data_scale normalise(a); regression meets zeros, mip the target and a tenth of noise."""
    observation, action = windows(5)
    policy = make_policy(method, Affine(0.0), data_scale)
    batch = noised(policy, observation, action)
    target = data_scale * (2 * (action - LOW) / (HIGH - LOW) - 1)
    torch.testing.assert_close(batch.path.target, target)
    assert torch.equal(batch.observed[0], observation.flatten(1))
    noise = torch.randn(5, 8, 2, generator=generator(3))
    met = 0.9 * target + 0.1 * noise if method == "mip" else torch.zeros_like(target)
    torch.testing.assert_close(batch.path.noisy, met)


def test_the_regression_loss_by_hand():
    """f(0, 0, c) = c, so the loss is the mean of (c - a)^2, whatever the network does with its input."""
    policy = make_policy("regression", Affine(7.0))
    batch = noised(policy, *windows(5))
    by_hand = (batch.observed[0][:, :1, None] - batch.path.target).square().mean()
    torch.testing.assert_close(policy.loss(batch), by_hand)


def test_the_mip_loss_by_hand():
    """With f = 2 x + t + c: mean (c - a)^2 + mean (2 (0.9 a + 0.1 z) + 0.9 + c - a)^2."""
    policy = make_policy("mip", Affine(2.0))
    batch = noised(policy, *windows(5))
    a, met, c = batch.path.target, batch.path.noisy, batch.observed[0][:, :1, None]
    first, second = c - a, 2 * met + 0.9 + c - a
    torch.testing.assert_close(policy.loss(batch), first.square().mean() + second.square().mean())


def test_the_network_reads_steps_0_and_90():
    seen = []

    class Watching(Affine):
        def forward(self, x, step, features):
            seen.append(step.tolist())
            return super().forward(x, step, features)

    policy = make_policy("mip", Watching(1.0))
    policy.loss(noised(policy, *windows(2)))
    policy.predict(windows(2)[0], DIRECT, generators(2))
    assert seen == [[0, 0], [90, 90]] * 2


@pytest.mark.parametrize("method", TIMES)
def test_micro_batches_have_the_loss_of_the_whole(method):
    policy = make_policy(method, Affine(2.0))
    batch = noised(policy, *windows(5))
    parts = cut(batch, 2)
    assert [len(part.path.target) for part in parts] == [3, 2]
    weighted = sum(policy.loss(part) * len(part.path.target) / 5 for part in parts)
    torch.testing.assert_close(weighted, policy.loss(batch))


def test_regression_acts_with_one_forward_pass():
    policy = make_policy("regression", make_unet(), data_scale=3.0)
    observation, _ = windows(4)
    with torch.no_grad():
        predicted = policy.network(torch.zeros(4, 8, 2), torch.zeros(4, dtype=torch.long), observation.flatten(1))
    assert predicted.abs().max() < 3, "nothing is clipped"
    chunk = policy.predict(observation, DIRECT, generators(4))
    torch.testing.assert_close(chunk, LOW + (HIGH - LOW) * (predicted / 3 + 1) / 2)


@pytest.mark.parametrize("data_scale", [1.0, 3.0])
def test_mip_acts_with_two_passes(data_scale):
    """f(x, t, c) = 0.5 x + t + c: a_0 = c, then a = 0.5 * 0.9 c + 0.9 + c, both clipped to +-data_scale."""
    policy = make_policy("mip", Affine(0.5), data_scale)
    observation = torch.tensor([-0.8, -0.1, 0.4, 1.6, -5.0])[:, None, None].expand(5, 2, 3)
    c = observation[:, 0, 0]
    first = c.clamp(-data_scale, data_scale)
    a = (0.5 * 0.9 * first + 0.9 + c).clamp(-data_scale, data_scale)
    chunk = policy.predict(observation, DIRECT, generators(5))
    expected = LOW + (HIGH - LOW) * (a / data_scale + 1)[:, None, None] / 2
    torch.testing.assert_close(chunk, expected.expand(5, 8, 2), rtol=1e-5, atol=1e-3)
    assert chunk[..., 0].min() >= 0 and chunk[..., 0].max() <= 200 + 1e-3


@pytest.mark.parametrize("method", TIMES)
def test_acting_depends_on_the_observation_alone(method):
    """Neither generators nor the number of steps enter: bit for bit the same chunks."""
    policy = make_policy(method, make_unet())
    observation, _ = windows(3)
    chunk = policy.predict(observation, DIRECT, generators(3, seed=1))
    assert torch.equal(chunk, policy.predict(observation, Solver("direct", 100), generators(3, seed=2)))
    assert not torch.equal(chunk[0], chunk[1])


@pytest.mark.parametrize("method", TIMES)
def test_between_two_ways_it_takes_the_mean(method):
    """Chunks lie 60 px to either side of what the observation says, as a coin falls: both controls end between.

    The minimiser of either error is an expectation, here one that a network linear in everything can represent.
    """

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.of_input = torch.nn.Parameter(torch.zeros(()))
            self.at_0, self.at_90 = torch.nn.Linear(6, 2), torch.nn.Linear(6, 2)

        def forward(self, x, step, features):
            of_features = torch.where(step[:, None] == 0, self.at_0(features), self.at_90(features))
            return self.of_input * x + of_features[:, None]

    def batch(rows):
        observation = 2 * torch.rand(rows, 2, 3, generator=g) - 1
        middle = torch.tensor([100.0, 250.0]) + 30 * observation[:, 0, :2]
        coin = torch.randint(2, (rows, 1), generator=g) * 2 - 1
        return observation, middle[:, None].expand(rows, 8, 2), (middle + 60 * coin)[:, None].expand(rows, 8, 2)

    g = generator(0)
    torch.manual_seed(0)
    policy = make_policy(method, Linear())
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=600)
    for seed in range(600):
        observation, _, action = batch(256)
        loss = policy.loss(noised(policy, observation, action, seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    observation, middle, action = batch(400)
    chunk = policy.predict(observation, DIRECT, generators(400))
    assert (chunk - middle).abs().mean() < 8
    assert (chunk - action).abs().mean() > 50, "the demonstrated chunks are 60 px away"


@pytest.mark.parametrize("data_scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_none_is_refused(data_scale):
    with pytest.raises(ValueError, match="data_scale=.*above 0"):
        make_policy("mip", Affine(1.0), data_scale)
