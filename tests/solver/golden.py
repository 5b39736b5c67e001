"""Golden samples: `python -m tests.solver.golden` printed golden.json when the recurrence replaced the former sampler.

Network and noise are elementary functions rounded to a few bits, so that no random stream and no libm enters: an
epsilon network 0.5 x - 0.25 clip(x, -1, 1) + t / 256, start and added noise a walk through a fixed list.
"""

import json

import torch

from immiscible_policy.path import Ddpm
from immiscible_policy.solver import Solver, draws, solve

CASES = [("ddim", 10, "leading"), ("ddpm", 20, "leading"), ("renoise", 10, "leading"), ("dpmpp", 10, "trailing")]


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """A network without random weights."""
    return 0.5 * x - 0.25 * x.clamp(-1, 1) + t / 256


def noise(count: int) -> torch.Tensor:
    """Start noise and noise to add (count, 1, 4, 2), multiples of 1 / 8 from -2 to 2."""
    return ((torch.arange(count * 8) * 37 % 33 - 16) / 8).reshape(count, 1, 4, 2)


def sample(name: str, steps: int, spacing: str) -> torch.Tensor:
    """The sample (1, 4, 2) of a solver."""
    path = Ddpm(100)
    plan = Solver(name, steps, spacing).plan(path)
    return solve(lambda i, x: network(x, plan[i].t), path, plan, noise(draws(plan)), limit=1.0)


if __name__ == "__main__":
    samples = {
        f"{name}_{steps}_{spacing}": {
            "solver": [name, steps, spacing],
            "values": [value.hex() for value in sample(name, steps, spacing).flatten().tolist()],
        }
        for name, steps, spacing in CASES
    }
    print(json.dumps({"samples": samples}, indent=1))
