"""Every solver on every path: against diffusers, by hand, in law, and its order of convergence."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from immiscible_policy.path import PREDICTIONS, Ddpm, Flow, Regression
from immiscible_policy.solver import SOLVERS, Solver, draws, noise_rows, solve
from tests.path.analytic import MixtureNetwork
from tests.random_numbers import generators

DATA = 0.3, 0.1
PATHS = {prediction: Ddpm(100, prediction=prediction) for prediction in PREDICTIONS}
PATHS |= {"flow": Flow(), "flow of the sample": Flow("sample")}
COMBINATIONS = [(path, solver) for path in PATHS for solver in PATHS[path].solvers]


def run(network, path, solver, rows=4, limit=1.0, noise=None, dtype=torch.float32):
    plan = solver.plan(path)
    noise = noise_rows(generators(rows), draws(plan), (16, 2)).to(dtype) if noise is None else noise
    return solve(lambda i, x: network(x, plan[i].alpha, plan[i].sigma), path, plan, noise, limit=limit)


@pytest.mark.parametrize(("path", "solver"), COMBINATIONS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_gaussian_comes_back_in_law(path, solver, scale):
    """All but renoise, which narrows, recover mean and deviation."""
    mean, std = DATA[0] * scale, DATA[1] * scale
    network = MixtureNetwork(PATHS[path], [mean], std)
    x = run(network, PATHS[path], Solver(solver, 99), rows=300, limit=scale)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01 * scale)
    if solver == "renoise":
        assert 0.2 * std < float(x.std()) < 0.95 * std
    else:  # the smaller of the two variances of ddpm leaves it a little narrow
        assert float(x.std()) == pytest.approx(std, rel=0.2 if solver == "ddpm" else 0.1)


@pytest.mark.parametrize("path", ["sample", "flow"])
def test_both_modes_of_a_mixture_come_back_with_their_weights(path):
    """Modes at -0.5 and 0.5, one three times as likely: the ODE carries a quarter of the noise to the rarer one."""
    network = MixtureNetwork(PATHS[path], [-0.5, 0.5], 0.05, [1, 3])
    x = run(network, PATHS[path], Solver(PATHS[path].solvers[0], 100), rows=500)
    likely = x > 0
    assert float(likely.float().mean()) == pytest.approx(0.75, abs=0.02)
    for mode, centre in ((x[likely], 0.5), (x[~likely], -0.5)):
        assert float(mode.mean()) == pytest.approx(centre, abs=0.01)
        assert float(mode.std()) == pytest.approx(0.05, rel=0.15)


def diffusers_scheduler(name, steps, spacing, prediction, eta):
    options = dict(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    clipped = dict(clip_sample=True, clip_sample_range=1.0, timestep_spacing=spacing)
    if name == "ddpm":
        scheduler = DDPMScheduler(**options, **clipped, variance_type="fixed_small")
    elif name == "ddim":
        scheduler = DDIMScheduler(**options, **clipped)
    else:  # its thresholding at 1 means clipping at 1
        kind = "sde-dpmsolver++" if eta else "dpmsolver++"
        scheduler = DPMSolverMultistepScheduler(**options, thresholding=True, sample_max_value=1.0, algorithm_type=kind)
        levels = Ddpm(100).levels(steps, spacing)
        scheduler.set_timesteps(timesteps=[int(level.t) for level in levels])
        return scheduler
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("name", "steps", "spacing", "eta"),
    [
        ("ddim", 10, "leading", 0.0),
        ("ddim", 10, "trailing", 0.0),
        ("ddim", 5, "trailing", 0.7),
        ("ddpm", 100, "leading", 0.0),
        ("ddpm", 20, "leading", 0.0),
        ("dpmpp", 8, "trailing", 0.0),
        ("dpmpp", 8, "trailing", 1.0),
    ],
)
def test_diffusers_agrees(prediction, name, steps, spacing, eta):
    """Step by step through the schedulers of diffusers, each row with its own stream of noise."""
    path = Ddpm(100, prediction=prediction)
    network = MixtureNetwork(path, [-0.4, 0.6], 0.2)
    solver = Solver(name, steps, spacing, eta)
    scheduler, plan, rows = diffusers_scheduler(name, steps, spacing, prediction, eta), solver.plan(path), generators(4)
    x = torch.stack([torch.randn(16, 2, generator=g) for g in rows])
    options = {"eta": eta} if name == "ddim" else {}
    for t, step in zip(scheduler.timesteps, plan, strict=True):
        assert int(t) == step.t
        x = scheduler.step(network(x, step.alpha, step.sigma), t, x, generator=rows, return_dict=False, **options)[0]
    torch.testing.assert_close(run(network, path, solver), x, rtol=2e-3, atol=2e-4)


def test_eta_of_one_is_ancestral_sampling():
    for path in PATHS.values():
        for ddim, ddpm in zip(Solver("ddim", 7, eta=1.0).plan(path), Solver("ddpm", 7).plan(path), strict=True):
            # one in x_0 and e, the other in x and x_0, where x = alpha x_0 + sigma e
            assert ddim.predicted == pytest.approx(ddpm.keep * ddpm.sigma, abs=1e-9)
            assert ddim.clean == pytest.approx(ddpm.clean + ddpm.keep * ddpm.alpha, abs=1e-9)
            assert ddim.fresh == pytest.approx(ddpm.fresh, abs=1e-9)


def test_flow_by_hand():
    """Euler and Heun as everybody writes them: x + h v, and x + h (v + v~) / 2, the last step Euler's."""
    path, steps = Flow(), 4
    network = MixtureNetwork(path, [-0.4, 0.6], 0.2)
    noise = noise_rows(generators(4), 1, (16, 2)).double()

    def velocity(x, i):
        return network(x, i / steps, 1 - i / steps)

    euler = heun = noise[0]
    for i in range(steps):
        euler = euler + velocity(euler, i) / steps
        v = velocity(heun, i)
        ahead = heun + v / steps
        heun = ahead if i == steps - 1 else heun + (v + velocity(ahead, i + 1)) / (2 * steps)
    torch.testing.assert_close(run(network, path, Solver("euler", 4), noise=noise, limit=9), euler)
    torch.testing.assert_close(run(network, path, Solver("heun", 7), noise=noise, limit=9), heun)


class LongChain(Ddpm):
    """Equal steps in lambda from -3 to 3, unclipped, float64: what an order of convergence is measured on."""

    clipped = False

    def __init__(self, prediction):
        super().__init__(4000, prediction=prediction)
        self.alphas_cumprod = torch.linspace(6, -6, 4000, dtype=torch.float64).sigmoid()


def ode_error(path, name, steps):
    """Largest distance of the last predicted x_0 from the ODE's, solved for data N(mean, std^2).

    (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) stays constant along the ODE (Song et al., 2021b).
    """
    mean, std = 0.3, 0.4
    plan = Solver(name, steps).plan(path)
    noise = noise_rows(generators(8), 1, (16, 2)).double()
    network = MixtureNetwork(path, [mean], std)
    predicted = []
    solve(lambda i, x: network(x, plan[i].alpha, plan[i].sigma), path, plan, noise, limit=1e9, record=predicted)
    first, last = plan[0], plan[-1]

    def spread(step):
        return math.sqrt(step.alpha**2 * std**2 + step.sigma**2)

    end = last.alpha * mean + (noise[0] - first.alpha * mean) * spread(last) / spread(first)
    exact = mean + last.alpha * std**2 / spread(last) ** 2 * (end - last.alpha * mean)
    return float((predicted[-1] - exact).abs().max())


@pytest.mark.parametrize(
    "path", [*(LongChain(prediction) for prediction in PREDICTIONS), Flow(), Flow("sample")], ids=[*PATHS]
)
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp", 2), ("heun", 2)])
def test_order_of_convergence(path, name, order):
    """Twice the steps: half the error of the first order, a quarter of the second's."""
    if isinstance(path, Flow) and name == "dpmpp":
        pytest.skip("its levels begin at lambda = -infinity, where the second order has nothing to hold on to")
    counts = (101, 201, 401) if name == "heun" else (50, 100, 200)
    errors = [ode_error(path, name, count) for count in counts]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 0.85 * 2**order < coarse / fine < 1.2 * 2**order


def test_renoising_narrows_a_gaussian_as_by_hand():
    """Each prediction is the posterior mean, noised anew, so a variance v becomes g^2 (a v + 1 - a), less than s^2.

    Here g = sqrt(a) s^2 / (a s^2 + 1 - a) and s^2 is the variance of the data.
    """
    mean, std, path = 0.3, 0.2, Ddpm(100)
    centre, variance = 0.0, 0.0
    for i, step in enumerate(Solver("renoise", 20).plan(path)):
        a = step.alpha**2
        gain = step.alpha * std**2 / (a * std**2 + 1 - a)
        seen = (step.alpha * centre, a * variance + 1 - a) if i else (0.0, 1.0)  # starts from N(0, 1)
        centre, variance = mean + gain * (seen[0] - step.alpha * mean), gain**2 * seen[1]
    x = run(MixtureNetwork(path, [mean], std), path, Solver("renoise", 20), rows=1000)
    assert float(x.mean()) == pytest.approx(centre, abs=0.005)
    assert float(x.std()) == pytest.approx(variance**0.5, rel=0.03)


@pytest.mark.parametrize(("path", "solver"), COMBINATIONS)
def test_a_row_depends_on_its_own_generator_alone(path, solver):
    network, path, solver = MixtureNetwork(PATHS[path], [0.0], 0.5), PATHS[path], Solver(solver, 5)
    plan = solver.plan(path)
    many = run(network, path, solver, noise=noise_rows(generators(5), draws(plan), (16, 2)))
    alone = run(network, path, solver, noise=noise_rows(generators(5)[3:], draws(plan), (16, 2)))
    assert torch.equal(many[3:], alone)


@pytest.mark.parametrize(("path", "solver"), COMBINATIONS)
def test_samples_stay_within_the_limit(path, solver):
    network = MixtureNetwork(PATHS[path], [5.0], 1.0)
    x = run(network, PATHS[path], Solver(solver, 99), rows=20, limit=2.0)
    assert float(x.abs().max()) == 2


@pytest.mark.parametrize(("path", "solver"), COMBINATIONS)
def test_the_recorded_predictions_end_in_the_sample(path, solver):
    plan, record = Solver(solver, 5).plan(PATHS[path]), []
    network = MixtureNetwork(PATHS[path], [0.2], 0.3)
    noise = noise_rows(generators(3), draws(plan), (16, 2))
    x = solve(lambda i, y: network(y, plan[i].alpha, plan[i].sigma), PATHS[path], plan, noise, limit=1.0, record=record)
    assert len(record) == len(plan) == 5
    torch.testing.assert_close(record[-1], x)


def test_noise_is_drawn_row_by_row_one_sample_at_a_time():
    for shape in ((16, 2), (3, 5, 5)):  # the second fills no blocks of 16
        rows = noise_rows(generators(3), 4, shape)
        for i, generator in enumerate(generators(3)):
            assert torch.equal(rows[:, i], torch.stack([torch.randn(shape, generator=generator) for _ in range(4)]))


GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["samples"])
def test_the_bits_of_the_published_grids_stay(name):
    """Values that the former sampler gave; golden.py made them, without random numbers."""
    from tests.solver.golden import sample

    ours = sample(*GOLDEN["samples"][name]["solver"])
    assert [value.hex() for value in ours.flatten().tolist()] == GOLDEN["samples"][name]["values"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Solver("dopri", 5), f"solver=dopri: choose from {', '.join(SOLVERS)}"),
        (lambda: Solver("ddim", 0), "sampling_steps=0"),
        (lambda: Solver("heun", 4), "sampling_steps=4: solver=heun"),
        (lambda: Solver("ddim", 4, eta=1.5), "eta=1.5"),
        (lambda: Solver("ddpm", 4, eta=0.5), "eta=0.5: solver=ddpm has no eta"),
        (lambda: Solver("direct", 4).plan(Flow()), "solver=direct: what this model learned is solved with euler"),
        (lambda: Solver("ddim", 4).plan(Regression()), "solver=ddim: what this model learned is solved with direct"),
        (lambda: Solver("ddim", 101).plan(Ddpm(100)), "sampling_steps=101"),
        (lambda: Solver("euler", 5, "leading").plan(Flow()), "spacing=leading"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
