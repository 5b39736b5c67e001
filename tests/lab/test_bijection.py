"""Perturbed start noises: their law, what a linear model makes of them, and the experiment on small policies."""

import math

import pytest
import torch

from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.lab import bijection
from immiscible_policy.lab.bijection import (
    Perturbed,
    PerturbedPolicy,
    chunk_generator,
    linear_displacement,
    perturb,
    perturbed_results,
)
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from tests.random_numbers import generator
from tests.small_policy import SPEC, small_policy

OPTIONS = {key: option.default for key, option in bijection.OPTIONS.items()} | {
    "perturbations": 2, "observations": 3, "windows": 20, "starts": "100000", "max_steps": 9, "sampling_steps": 2,
}  # fmt: skip


@pytest.fixture
def policy():
    return small_policy()


class AlwaysThere(torch.nn.Module):
    """The exact denoiser of data that are always the same; it remembers what it was shown."""

    def __init__(self, policy, place):
        super().__init__()
        self.alphas, self.place, self.seen = policy.path.alphas_cumprod, place, []

    def forward(self, x, t, features):
        self.seen.append((x.clone(), int(t[0])))
        a = self.alphas[t][:, None, None]
        return (x - a.sqrt() * self.place) / (1 - a).sqrt()


class FollowsNoise(torch.nn.Module):
    """The exact denoiser of standard normal data: then x_t is standard normal, and sampling keeps the start noise."""

    def __init__(self, policy):
        super().__init__()
        self.alphas = policy.path.alphas_cumprod

    def forward(self, x, t, features):
        return x * (1 - self.alphas[t]).sqrt()[:, None, None]


# --- perturbations ----------------------------------------------------------------------------------------------------


def test_noise_is_perturbed_as_published():
    """Equation 1 of arXiv 2505.18521: N_orig + W N_pert; 0.958 is its correlation with the original at W = 0.3."""
    noise, eta = torch.randn(2, 200_000, generator=generator())
    mixed = perturb(noise, eta, 0.3)
    assert torch.equal(mixed, noise + 0.3 * eta)
    assert float(torch.corrcoef(torch.stack([mixed, noise]))[0, 1]) == pytest.approx(0.958, abs=0.001)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_normalised_perturbed_noise_is_standard_normal_and_correlated_as_stated(weight):
    noise, eta = torch.randn(2, 200_000, generator=generator())
    mixed = perturb(noise, eta, weight, "normalised")
    assert float(mixed.var()) == pytest.approx(1, abs=0.02)
    rho = (1 - weight) / math.hypot(1 - weight, weight)
    assert float((mixed * noise).mean()) == pytest.approx(rho, abs=0.01)
    assert linear_displacement(weight, "normalised") == pytest.approx(math.sqrt(1 - rho))


@pytest.mark.parametrize("form", bijection.FORMS)
def test_no_weight_changes_nothing(form):
    noise, eta = torch.randn(2, 10, generator=generator())
    assert torch.equal(perturb(noise, eta, 0.0, form), noise)
    assert linear_displacement(0.0, form) == 0


def test_weights_broadcast_over_rows():
    noise, eta = torch.randn(2, 3, 4, generator=generator())
    rows = perturb(noise, eta, torch.tensor([0.0, 0.3, 1.0])[:, None])
    for row, weight in zip(range(3), (0.0, 0.3, 1.0), strict=True):
        assert torch.allclose(rows[row], perturb(noise[row], eta[row], weight))


@pytest.mark.parametrize("form", bijection.FORMS)
def test_a_linear_model_moves_as_the_law_says(form):
    weights, noise = (0.0, 0.1, 0.3, 0.5), torch.randn(200, 50, generator=generator())
    moved = perturbed_results(lambda eps: 3 * eps + 7, noise, weights, 4, generator(1), form).displacement()
    assert moved[0] == 0
    assert moved[-1] == pytest.approx(3 * math.sqrt(2), rel=0.02)
    for weight, distance in zip(weights, moved[:-1], strict=True):
        assert distance / moved[-1] == pytest.approx(linear_displacement(weight, form), abs=0.01)


def test_a_model_that_ignores_its_noise_never_moves():
    noise = torch.randn(5, 3, generator=generator())
    result = perturbed_results(lambda eps: torch.ones_like(eps), noise, (0.2,), 3, generator())
    assert result.results.shape == (2, 3, 5, 3) and result.displacement() == [0, 0]


def test_displacement_by_hand():
    results = torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]]])  # one weight, two perturbations, one start, two numbers
    assert Perturbed(torch.zeros(1, 2), results).displacement() == [pytest.approx(2.5)]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_chunks_from_given_noise_are_those_that_the_policy_samples(policy):
    observation = 512 * torch.rand(3, 2, 20, generator=generator())
    noise = torch.stack([torch.randn(16, 2, generator=generator(seed)) for seed in range(3)])
    generate = chunk_generator(policy, observation, Solver("ddim", 4))
    expected = policy.predict(observation, Solver("ddim", 4), [generator(seed) for seed in range(3)])
    assert torch.allclose(policy.action.unnormalize(generate(noise)), expected, atol=1e-3)


def test_a_solver_with_noise_of_its_own_is_refused(policy):
    with pytest.raises(ValueError, match="solver=ddpm: it adds noise"):
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


def test_an_unperturbed_row_samples_as_the_policy_and_a_perturbed_one_otherwise(policy):
    observation = (512 * torch.rand(1, 2, 20, generator=generator())).expand(2, -1, -1)
    perturbed = PerturbedPolicy(policy, [0.0, 0.5], [generator(5), generator(6)])
    sampled = perturbed.predict(observation, Solver("ddim", 3), [generator(1), generator(1)])
    expected = policy.predict(observation, Solver("ddim", 3), [generator(1), generator(1)])
    assert torch.allclose(sampled[0], expected[0], atol=1e-3)
    assert (sampled[1] - expected[1]).abs().max() > 1


def test_episodes_of_a_policy_that_ignores_its_noise_score_the_same(policy, run, monkeypatch):
    monkeypatch.setattr(bijection, "ROLLOUT_WEIGHTS", (0.5, 1.0))
    policy.network = AlwaysThere(policy, place=0.2)
    monkeypatch.setattr(bijection, "read_policy", lambda checkpoint, device: (policy, SPEC))
    checkpoint = RunDirectory(run).seed(0).newest()
    change = bijection.score_change(checkpoint, Solver("ddim", 2), 100_000, OPTIONS)
    assert change == pytest.approx([0, 0])


# --- the experiment ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, policy):
    metadata = spec_metadata(SPEC) | {"step": 7, "config": {"seed": "0,1", "noise": {"name": "vanilla"}}}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.yaml").write_text("{seed: '0,1', noise: {name: vanilla}}\n")
    weights = policy.state_dict()
    for seed in (0, 1):
        directory = tmp_path / "small" / f"seed_{seed}" / "checkpoints" / "step_000007"
        save_checkpoint(directory, metadata | {"seed": seed}, {"model": weights, "ema": weights})
    return tmp_path / "small"


def test_the_experiment_reproduces_and_rolls_out_the_first_seed_alone(run):
    options = OPTIONS | {"runs": named_runs(str(run))}
    first, again = bijection.measure(options), bijection.measure(options)
    assert first.figures == again.figures and first.text == again.text
    seeds = first.figures["policies"]["small"]
    assert [list(result["score_change"]) for result in seeds] == [[100_000], []]
    assert all(result["chunk_displacement"][0] < 1e-3 < result["chunk_displacement"][-1] for result in seeds)
    assert seeds[0]["chunk_displacement"] == seeds[1]["chunk_displacement"]  # the same weights, the same noises


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": {"absent": RunDirectory("absent")}}, "absent"),
        ({"runs": {"x": RunDirectory("x")}, "observations": 2}, "observations=2"),
        ({"runs": {"x": RunDirectory("x")}, "sampling_steps": 0}, "sampling_steps=0"),
        ({"runs": {"x": RunDirectory("x")}, "form": "other"}, "unknown form 'other'"),
    ],
)
def test_bad_options_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        bijection.measure(OPTIONS | change)


def test_more_windows_than_there_are_are_refused(run):
    with pytest.raises(ValueError, match="windows=10000000: use 1 to .* as many windows as the demonstrations have"):
        bijection.measure(OPTIONS | {"runs": named_runs(str(run)), "windows": 10_000_000})


def test_unknown_starts_are_refused_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setattr(bijection, "measure_policy", lambda *_: pytest.fail("a policy was measured"))
    with pytest.raises(ValueError, match="starts=first"):
        bijection.measure(OPTIONS | {"runs": named_runs(str(run)), "starts": "first"})
