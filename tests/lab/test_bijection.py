"""Perturbed start noises: their law, what a linear model makes of them, and the experiment on small policies."""

import math

import numpy as np
import pytest
import torch

from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import Agent, spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.lab import bijection
from immiscible_policy.lab.perturbation import (
    Perturbed,
    PerturbedAgent,
    chunk_generator,
    linear_displacement,
    perturb,
    perturbed_results,
    perturbed_rollouts,
)
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.lab.small import SPEC, AlwaysThere, small_policy

OPTIONS = {key: option.default for key, option in bijection.OPTIONS.items()} | {
    "perturbations": 2, "observations": 3, "windows": 20, "starts": "100000", "max_steps": 9, "sampling_steps": 2,
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy():
    return small_policy()


class FollowsNoise(torch.nn.Module):
    """The exact denoiser of standard normal data: then x_t is standard normal, and sampling keeps the start noise."""

    def __init__(self, policy):
        super().__init__()
        self.alphas = policy.path.alphas_cumprod

    def forward(self, x, t, condition):
        return x * (1 - self.alphas[t]).sqrt()[:, None, None]


# --- perturbations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_perturbed_noise_is_standard_normal_and_correlated_as_stated(weight):
    noise, eta = torch.randn(2, 200_000, generator=generator())
    mixed = perturb(noise, eta, weight)
    assert float(mixed.var()) == pytest.approx(1, abs=0.02)
    rho = (1 - weight) / math.hypot(1 - weight, weight)
    assert float((mixed * noise).mean()) == pytest.approx(rho, abs=0.01)
    assert linear_displacement(weight) == pytest.approx(math.sqrt(1 - rho))


def test_no_weight_changes_nothing_and_full_weight_leaves_nothing():
    noise, eta = torch.randn(2, 10, generator=generator())
    assert torch.equal(perturb(noise, eta, 0.0), noise)
    assert torch.equal(perturb(noise, eta, 1.0), eta)
    assert linear_displacement(0.0) == 0 and linear_displacement(1.0) == 1


def test_weights_broadcast_over_rows():
    noise, eta = torch.randn(2, 3, 4, generator=generator())
    rows = perturb(noise, eta, torch.tensor([0.0, 0.3, 1.0])[:, None])
    for row, weight in zip(range(3), (0.0, 0.3, 1.0), strict=True):
        assert torch.allclose(rows[row], perturb(noise[row], eta[row], weight))


def test_a_linear_model_moves_as_the_law_says():
    weights, noise = (0.0, 0.1, 0.3, 0.5, 1.0), torch.randn(200, 50, generator=generator())
    moved = perturbed_results(lambda eps: 3 * eps + 7, noise, weights, 4, generator(1)).displacement()
    assert moved[0] == 0
    assert moved[-1] == pytest.approx(3 * math.sqrt(2), rel=0.02)
    for weight, distance in zip(weights, moved, strict=True):
        assert distance / moved[-1] == pytest.approx(linear_displacement(weight), abs=0.01)


def test_a_model_that_ignores_its_noise_never_moves():
    noise = torch.randn(5, 3, generator=generator())
    found = perturbed_results(lambda eps: torch.ones_like(eps), noise, (0.2, 1.0), 3, generator())
    assert found.results.shape == (2, 3, 5, 3) and found.displacement() == [0, 0]


def test_displacement_by_hand():
    results = torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]]])  # one weight, two perturbations, one start, two numbers
    assert Perturbed(torch.zeros(1, 2), results).displacement() == [pytest.approx(2.5)]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_chunks_from_given_noise_are_those_that_the_policy_samples(policy):
    observation = 512 * torch.rand(3, 2, 20, generator=generator())
    noise = torch.stack([torch.randn(16, 2, generator=generator(seed)) for seed in range(3)])
    generate = chunk_generator(policy, observation, Solver("ddim", 4))
    expected = policy.sample(observation, Solver("ddim", 4), [generator(seed) for seed in range(3)])
    assert torch.allclose(policy.action.unnormalize(generate(noise)), expected, atol=1e-3)


def test_a_sampler_with_noise_of_its_own_is_refused(policy):
    with pytest.raises(ValueError, match="solver=ddpm adds noise"):
        chunk_generator(policy, torch.zeros(1, 2, 20), Solver("ddpm", 4))


def test_start_noise_figures_tell_a_policy_that_follows_its_noise_from_one_that_does_not(policy):
    rows = 2 * bijection.BATCH
    action = 256 + 40 * torch.randn(rows, 16, 2, generator=generator())
    windows = Windows(torch.zeros(rows, 2, 20), action, torch.ones(rows, 16, dtype=torch.bool), torch.zeros(rows))
    policy.network = FollowsNoise(policy)
    follows = bijection.start_noise_figures(policy, windows, Solver("ddim", 10), 0)
    policy.network = AlwaysThere(policy, place=0.0)
    ignores = bijection.start_noise_figures(policy, windows, Solver("ddim", 10), 0)
    assert follows["correlation"] > 0.9 and abs(ignores["correlation"]) < 0.15
    assert follows["rmse_assigned"] < 0.95 * follows["rmse_random"]
    assert ignores["rmse_assigned"] == pytest.approx(ignores["rmse_random"], rel=1e-3)
    assert ignores["rmse_random"] == pytest.approx(ignores["rmse_mean"], rel=0.05)


def test_an_unperturbed_row_acts_as_the_agent_and_a_perturbed_one_otherwise(policy):
    agent = Agent(policy, SPEC, Solver("ddim", 3))
    observations = np.tile(512 * np.random.default_rng(0).random((1, 2, 20)), (2, 1, 1))
    perturbed = PerturbedAgent(agent, [0.0, 0.5], [generator(5), generator(6)])
    acted = perturbed.act(observations, [generator(1), generator(1)])
    expected = agent.act(observations, [generator(1), generator(1)])
    assert np.allclose(acted[0], expected[0], atol=1e-3)
    assert np.abs(acted[1] - expected[1]).max() > 1


def test_rollouts_without_weight_follow_the_unperturbed_one_which_is_the_evaluated_one(policy):
    agent = Agent(policy, SPEC, Solver("ddim", 2))
    found = perturbed_rollouts(agent, 100_000, (0.0, 0.5), 2, max_steps=20)
    alone = evaluate(agent, [100_000], seed=0, checkpoint=0, batch_size=5, max_steps=20)[0]
    assert len(found.rows) == 5 and found.block_paths().shape == (21, 5, 2)
    assert found.rows[0].metrics["coverage"] == pytest.approx(alone.metrics["coverage"], abs=1e-6)
    assert found.block_displacement()[0] == pytest.approx(0, abs=1e-6)
    assert found.coverage_change()[0] == pytest.approx(0, abs=1e-6)
    agents = found.recording.states[:, :, :2]
    assert np.abs(agents[:, 3:] - agents[:, :1]).max() > 1  # the perturbed ones went elsewhere


# --- the experiment ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, policy):
    metadata = spec_metadata(SPEC) | {"step": 7, "seed": 0, "config": {"noise": {"name": "vanilla"}}}
    weights = policy.state_dict()
    for seed in (0, 1):
        directory = tmp_path / "small" / f"seed_{seed}" / "checkpoints" / "step_000007"
        save_checkpoint(directory, metadata, {"model": weights, "ema": weights})
    return tmp_path / "small"


def test_the_experiment_reproduces_and_rolls_out_the_first_seed_alone(run):
    options = OPTIONS | {"runs": str(run)}
    first, again = bijection.measure(options), bijection.measure(options)
    assert first.figures == again.figures and first.text == again.text
    found = first.figures["policies"]["small"]
    assert [len(each["rollouts"]) for each in found] == [1, 0]
    assert all(each["chunk_displacement"][0] < 1e-3 < each["chunk_displacement"][-1] for each in found)
    assert found[0]["chunk_displacement"] == found[1]["chunk_displacement"]  # the same weights, the same noises


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs runs="),
        ({"runs": "absent"}, "runs=absent"),
        ({"runs": "x", "perturbations": 0}, "perturbations=0"),
        ({"runs": "x", "sampling_steps": 0}, "sampling_steps=0"),
        ({"runs": "x", "starts": "first"}, "starts=first"),
    ],
)
def test_bad_options_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        bijection.measure(OPTIONS | change)


def test_more_windows_than_there_are_are_refused(run):
    with pytest.raises(ValueError, match="windows=10000000: the demonstrations have"):
        bijection.measure(OPTIONS | {"runs": str(run), "windows": 10_000_000})
