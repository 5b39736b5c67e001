"""Inversion: a solver leads back from the noise that was found, on the exact denoiser of Gaussian data."""

import pytest
import torch

from immiscible_policy.path import Ddpm, Flow
from immiscible_policy.solver import Solver, invert, solve

STD = 0.6
PATHS = {"ddim": Ddpm(1000, betas="linear"), "euler": Flow()}


def exact(name, count):
    """The plan, and the exact answers for N(0, STD^2): E[e | x] on the first path, E[x_0 - e | x] on the second."""
    path, solver = PATHS[name], Solver(name, count)
    plan = solver.plan(path)

    def calls(i, x):
        alpha, sigma = plan[i].alpha, plan[i].sigma
        variance = (alpha * STD) ** 2 + sigma**2
        noise, clean = sigma / variance * x, alpha * STD**2 / variance * x
        return noise if name == "ddim" else clean - noise

    return path, plan, calls


def returned(name, count, rounds):
    """Largest error of samples drawn again from the noise that was found for them."""
    path, plan, calls = exact(name, count)
    x = STD * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    noise = invert(calls, path, plan, x, rounds=rounds)
    path.clipped = False
    return float((solve(calls, path, plan, noise[None], limit=1e9) - x).abs().max()), noise


@pytest.mark.parametrize("name", PATHS)
def test_rounds_make_the_inverse_exact(name):
    error, noise = returned(name, 20, 60)
    assert error < 1e-6
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", PATHS)
def test_one_round_comes_nearer_with_more_steps(name):
    few, many = (returned(name, count, 1)[0] for count in (10, 100))
    assert many < few / 4


@pytest.mark.parametrize("solver", [Solver("ddpm", 5), Solver("dpmpp", 5), Solver("heun", 5), Solver("ddim", 5, eta=1)])
def test_other_solvers_are_refused(solver):
    with pytest.raises(ValueError, match="solver=euler can be inverted"):
        invert(lambda i, x: x, PATHS["ddim"], solver.plan(PATHS["ddim"]), torch.zeros(2, 3))
