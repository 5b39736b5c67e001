"""Start noises a little off, and what becomes of them: how far a model's result follows the noise it starts from.

Figure 2 of Improved Immiscible Diffusion (arXiv 2505.18521) perturbs a start noise by a weight W. We take

    eps' = ((1 - W) eps + W eta) / sqrt((1 - W)^2 + W^2),   eta ~ N(0, I) independent of eps,

so that eps' is standard normal again for every W (the paper's equation 1 may scale otherwise): W = 0 changes nothing,
W = 1 is an independent noise. The correlation of eps' with eps is rho = (1 - W) / sqrt((1 - W)^2 + W^2); a model whose
result were linear in the noise would move by sqrt(1 - rho) of the way between results of independent noises.

Shape legend: N starts, P perturbations of each, M weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.policy import Policy
from immiscible_policy.solver import Solver, draws, noise_rows

Generate = Callable[[Tensor], Tensor]
"""Turns start noises (N, ...) into samples (N, ...)."""


def perturb(noise: Tensor, eta: Tensor, weight: Tensor | float) -> Tensor:
    """eps': noise and an independent eta of its shape, mixed by W from 0 to 1 (a tensor broadcasts)."""
    weight = torch.as_tensor(weight)
    return ((1 - weight) * noise + weight * eta) / ((1 - weight).square() + weight.square()).sqrt()


def linear_displacement(weight: float) -> float:
    """How far, of the way between results of independent noises, a result linear in the noise moves: sqrt(1 - rho)."""
    return math.sqrt(1 - (1 - weight) / math.hypot(1 - weight, weight))


class Perturbed(NamedTuple):
    """Results of start noises (N, ...), and of perturbed ones (M, P, N, ...) by weight and perturbation."""

    reference: Tensor
    results: Tensor

    def displacement(self) -> list[float]:
        """For each weight, the root mean square distance of the results from the reference, over all numbers."""
        return [float((result - self.reference).square().mean().sqrt()) for result in self.results]


def perturbed_results(
    generate: Generate, noise: Tensor, weights: Sequence[float], perturbations: int, generator: torch.Generator
) -> Perturbed:
    """Start a model from noises (N, ...) and from P perturbed ones of each; all weights share the same eta."""
    etas = [torch.randn(noise.shape, generator=generator) for _ in range(perturbations)]
    results = [torch.stack([generate(perturb(noise, eta, weight)) for eta in etas]) for weight in weights]
    return Perturbed(generate(noise), torch.stack(results))


def chunk_generator(policy: Policy, observation: Tensor, solver: Solver) -> Generate:
    """A policy's way from start noises (N, T, A) to normalised action chunks, one for each observation (N, O, Do).

    Raises:
        ValueError: If the solver adds noise of its own.
    """
    if draws(solver.plan(policy.path)) > 1:
        raise ValueError(f"solver={solver.name}: it adds noise; only a deterministic solver follows its start noise")
    condition = policy.encode(observation)
    return lambda noise: policy.solve(condition, solver, noise[None]) / policy.data_scale


class PerturbedPolicy:
    """Samples like a policy, row i of B from start noises that weight i perturbs by eta of generator i."""

    def __init__(self, policy: Policy, weights: Sequence[float], generators: Sequence[torch.Generator]) -> None:
        self.policy, self.path, self.action, self.generators = policy, policy.path, policy.action, list(generators)
        self.weights = torch.tensor(weights)[:, None, None]

    def sample(self, observation: Tensor, solver: Solver, generators: Sequence[torch.Generator]) -> Tensor:
        """As `Policy.sample`."""
        shape = (self.policy.horizon, len(self.action.scale))
        noise, eta = (noise_rows(sources, 1, shape)[0] for sources in (generators, self.generators))
        generate = chunk_generator(self.policy, observation, solver)
        return self.action.unnormalize(generate(perturb(noise, eta, self.weights)))
