"""Samplers: the fast engine against diffusers', order of convergence on an exact solution, noise row by row."""

import copy
from functools import partial

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from immiscible_policy.policy import ConditionalUnet1d, DiffusionPolicy, Normalizer, Sampler
from immiscible_policy.policy.sampling import (
    SAMPLERS,
    Replay,
    denoise,
    denoise_by_diffusers,
    denoising_steps,
    diffusers_scheduler,
    draws,
    noise_paths,
)
from tests.policy.test_diffusion import GaussianDenoiser, generators, make_policy, squared_cosine_alphas


def small_policy(data_scale=1.0, horizon=16, action_dim=2, step_embed_dim=16) -> DiffusionPolicy:
    """A U-Net with random weights, large enough for its predictions to depend on everything."""
    torch.manual_seed(0)
    unet = ConditionalUnet1d(action_dim, 6, step_embed_dim=step_embed_dim, down_dims=(16, 32), groups=4)
    ones = torch.ones(action_dim)
    unit = Normalizer(-torch.ones(3), torch.ones(3))
    return DiffusionPolicy(unet, unit, Normalizer(-ones, ones), horizon=horizon, data_scale=data_scale).eval()


def observations(count: int) -> torch.Tensor:
    return torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("steps", "data_scale"), [(1, 1.0), (2, 1.0), (3, 0.5), (7, 3.0), (10, 1.0), (100, 2.0)])
def test_fast_and_eager_agree(name, steps, data_scale):
    policy = small_policy(data_scale)
    fast, eager = (
        policy.sample(observations(4), Sampler(name, steps, engine), generators(4)) for engine in ("fast", "eager")
    )
    torch.testing.assert_close(fast, eager, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_fast_and_eager_agree_where_nothing_is_clipped(name):
    """With a wide clipping range every term of the recurrence shows; the data then are Gaussian, far inside."""
    denoiser = GaussianDenoiser(0.3, 0.5)
    policy = make_policy(denoiser, data_scale=50.0)
    fast, eager = (
        policy.sample(torch.zeros(4, 2, 2), Sampler(name, 20, engine), generators(4)) for engine in ("fast", "eager")
    )
    torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("horizon", "action_dim"), [(16, 2), (8, 1)])
def test_both_engines_leave_the_generators_alike(name, horizon, action_dim):
    """The same draws in the same order, also where a step draws fewer than 16 numbers."""
    policy = small_policy(horizon=horizon, action_dim=action_dim)
    left = []
    for engine in ("fast", "eager"):
        rows = generators(3)
        policy.sample(observations(3), Sampler(name, 6, engine), rows)
        left.append([float(torch.randn(1, generator=g)) for g in rows])
    assert left[0] == left[1]


@pytest.mark.parametrize("shape", [(16, 2), (12, 2), (4, 1), (16, 7)])
def test_a_path_of_noise_is_its_draws_one_after_another(shape):
    one_by_one = [[torch.randn(shape, generator=g) for _ in range(5)] for g in generators(3)]
    expected = torch.stack([torch.stack(row) for row in one_by_one], dim=1)
    assert torch.equal(noise_paths(generators(3), 5, shape), expected)


def test_every_number_of_steps_works_and_ends_within_the_clipping_range():
    """With x_0 as the last step's result, a sampler that divides by zero or loses a term shows itself."""
    alphas = squared_cosine_alphas(100)
    denoiser, noise = GaussianDenoiser(0.2, 0.3), noise_paths(generators(3), 100, (16, 2))
    for name in SAMPLERS:
        for count in range(1, 101):
            sampler = Sampler(name, count)
            steps, t = denoising_steps(sampler, alphas), torch.tensor(sampler.timesteps(100))
            assert len(steps) == count and len(t.unique()) == count and draws(steps) <= count
            x = denoise(denoiser, steps, 1.0, t, torch.zeros(3, 4), noise)
            assert torch.isfinite(x).all() and float(x.abs().max()) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_timesteps_are_those_of_diffusers(name):
    for steps in range(1, 101):
        sampler = Sampler(name, steps)
        assert diffusers_scheduler(sampler, 100, 1.0).timesteps.tolist() == sampler.timesteps(100)


@pytest.mark.parametrize("name", SAMPLERS)
def test_more_steps_than_the_chain_are_refused(name):
    policy = small_policy()
    for act in (policy.scheduler, lambda sampler: policy.sample(observations(1), sampler, generators(1))):
        with pytest.raises(ValueError, match="sampling_steps=101"):
            act(Sampler(name, 101))


def test_unknown_engines_are_refused():
    with pytest.raises(ValueError, match="engine=quick: known engines are fast, eager"):
        Sampler(engine="quick")


def exact_flow(x, a, last, mean, std):
    """The sampling ODE solved for data N(mean, std^2), from alpha-bar a to alpha-bar `last`, and x_0 predicted there.

    (x_t - sqrt(a) mean) / sqrt(a std^2 + 1 - a) stays constant along the ODE (Song et al., 2021b, for a Gaussian).
    """

    def spread(a):
        return (a * std**2 + 1 - a).sqrt()

    end = last.sqrt() * mean + (x - a.sqrt() * mean) * spread(last) / spread(a)
    return mean + last.sqrt() * std**2 / spread(last) ** 2 * (end - last.sqrt() * mean)


def ode_error(name, steps, chain=4000):
    """Largest distance from the exact solution in float64, on a long chain of equal steps in lambda, unclipped."""
    alphas = torch.linspace(6, -6, chain, dtype=torch.float64).sigmoid()  # of 2 lambda
    sampler, x = Sampler(name, steps), noise_paths(generators(8), 1, (16, 2)).double()
    t = torch.tensor(sampler.timesteps(chain))
    denoiser = GaussianDenoiser(0.3, 0.4, chain)
    denoiser.alphas = alphas
    found = denoise(denoiser, denoising_steps(sampler, alphas), 1e9, t, torch.zeros(8, 4), x)
    return float((found - exact_flow(x[0], alphas[t[0]], alphas[t[-1]], 0.3, 0.4)).abs().max())


def test_dpmpp_is_of_second_order_and_ddim_of_first():
    """Twice the steps: a quarter of the error, and half of it."""
    dpmpp, ddim = ([ode_error(name, steps) for steps in (50, 100, 200)] for name in ("dpmpp", "ddim"))
    for coarse, fine in zip(dpmpp[:-1], dpmpp[1:], strict=True):
        assert 3.5 < coarse / fine < 4.5
    for coarse, fine in zip(ddim[:-1], ddim[1:], strict=True):
        assert 1.8 < coarse / fine < 2.2
    assert dpmpp[0] < 0.1 * ddim[0]


def test_dpmpp_of_one_or_two_steps_is_ddim_by_hand():
    """A first and a last step are of first order, which is DDIM; x_0 clipped, the rest follows from x_0."""
    alphas = squared_cosine_alphas(100)
    denoiser, noise = GaussianDenoiser(0.3, 0.4), noise_paths(generators(2), 1, (16, 2))
    x, t = noise[0].double(), torch.tensor([99, 49])

    def clean(x, i):
        a = alphas[i]
        return ((x - (1 - a).sqrt() * denoiser(x, torch.full((2,), i), None)) / a.sqrt()).clamp(-1, 1)

    x_0 = clean(x, 99)
    eps = (x - alphas[99].sqrt() * x_0) / (1 - alphas[99]).sqrt()
    expected = clean(alphas[49].sqrt() * x_0 + (1 - alphas[49]).sqrt() * eps, 49)
    found = denoise(denoiser, denoising_steps(Sampler("dpmpp", 2), alphas), 1.0, t, torch.zeros(2, 4), noise.double())
    torch.testing.assert_close(found, expected)


def test_clipping_of_dpmpp_at_one_is_what_thresholding_at_one_does():
    """Where diffusers' own option means clipping (threshold 1), the clipped solver agrees with it."""
    policy = small_policy()
    ours = policy.scheduler(Sampler("dpmpp", 8))
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=1.0
    )
    theirs.set_timesteps(timesteps=ours.timesteps.tolist())
    start, condition = noise_paths(generators(4), 1, (16, 2))[0], policy.condition(observations(4))
    with torch.no_grad():
        found = [denoise_by_diffusers(policy.denoiser, each, condition, start, []) for each in (ours, theirs)]
    torch.testing.assert_close(found[0], found[1])


class Recorder:
    """Stands in for a CUDA graph: running it again computes the function on the tensors it was recorded with."""

    def __init__(self):
        self.recordings = 0

    def __call__(self, function, inputs):
        self.recordings += 1
        output = function(*inputs)
        return lambda: output.copy_(function(*inputs)), output


def test_a_replay_computes_the_function_of_new_inputs():
    recorder = Recorder()
    replay = Replay(recorder)
    results = [replay("sum", torch.add, torch.full((2,), float(i)), torch.ones(2)) for i in range(3)]
    assert [r.tolist() for r in results] == [[1, 1], [2, 2], [3, 3]]
    assert recorder.recordings == 1


def test_a_replay_records_anew_for_another_key_shape_or_type():
    recorder = Recorder()
    replay, one = Replay(recorder), torch.ones(2)
    replay("sum", torch.add, one, one)
    for count, (key, function, x) in enumerate(
        [("product", torch.mul, one), ("product", torch.mul, torch.ones(3)), ("product", torch.mul, one.double())], 2
    ):
        assert torch.equal(replay(key, function, x, x), torch.ones_like(x))
        assert recorder.recordings == count
    assert copy.deepcopy(replay)("product", torch.mul, one, one).tolist() == [1, 1]
    assert recorder.recordings == 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_replayed_denoising_is_a_function_of_its_inputs_and_sees_new_weights(name):
    """Observations and noise enter as inputs, weights where they lie: what a captured graph needs."""
    policy, replay, sampler = small_policy(), Replay(Recorder()), Sampler(name, 5)
    steps, t = denoising_steps(sampler, policy.noising.alphas_cumprod), torch.tensor(sampler.timesteps(100))
    unit = partial(denoise, policy.denoiser, steps, policy.data_scale)

    @torch.no_grad()
    def chunk(seed):
        condition = policy.condition(observations(3)) + seed
        return replay(sampler, unit, t, condition, noise_paths(generators(3, seed), draws(steps), (16, 2)))

    first, second = chunk(0), chunk(1)
    assert not torch.equal(first, second)
    with torch.no_grad():
        torch.nn.init.normal_(policy.denoiser.final_conv[1].weight)  # in place, as EMA weights are copied
    third = chunk(0)
    assert not torch.equal(first, third)
    assert replay.record.recordings == 1
    expected = policy.sample(observations(3), sampler, generators(3, 0))
    torch.testing.assert_close(policy.action.unnormalize(third / policy.data_scale), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_captured_denoising_equals_the_plain_one(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding would hide what is compared
    policy, sampler = small_policy().to("cuda"), Sampler(name, 10)
    seen = observations(5).to("cuda")
    for seed in range(3):  # captures, replays, and replays after the weights have changed in place
        if seed == 2:
            with torch.no_grad():
                torch.nn.init.normal_(policy.denoiser.final_conv[1].weight)
        fast, eager = (
            policy.sample(seen, Sampler(name, sampler.steps, engine), generators(5, seed))
            for engine in ("fast", "eager")
        )
        torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-3)
    assert policy.sample(seen[:2], sampler, generators(2)).shape == (2, 16, 2)
