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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.commands.render_rollout import Recorder, Recording
from immiscible_policy.evaluation.agent import Agent
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.policy import Policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.solver import Solver, draws
from immiscible_policy.store.rows import EpisodeRow

Generate = Callable[[Tensor], Tensor]
"""Turns start noises (N, ...) into samples (N, ...)."""


def perturb(noise: Tensor, eta: Tensor, weight: Tensor | float) -> Tensor:
    """Mix a noise with an independent one, keeping its variance at 1.

    Args:
        noise: Start noise eps.
        eta: The perturbation, of the same shape.
        weight: W, 0 to 1; a tensor broadcasts.
    """
    weight = torch.as_tensor(weight)
    return ((1 - weight) * noise + weight * eta) / ((1 - weight).square() + weight.square()).sqrt()


def linear_displacement(weight: float) -> float:
    """How far, of the way between results of independent noises, a result linear in the noise moves: sqrt(1 - rho)."""
    return math.sqrt(1 - (1 - weight) / math.hypot(1 - weight, weight))


class Perturbed(NamedTuple):
    """Results of perturbed start noises.

    Attributes:
        reference: From the start noises themselves (N, ...).
        results: From the perturbed ones (M, P, N, ...), by weight and perturbation.
    """

    reference: Tensor
    results: Tensor

    def displacement(self) -> list[float]:
        """For each weight, the root mean square distance of the results from the reference, over all numbers."""
        return [float((each - self.reference).square().mean().sqrt()) for each in self.results]


def perturbed_results(
    generate: Generate, noise: Tensor, weights: Sequence[float], perturbations: int, generator: torch.Generator
) -> Perturbed:
    """Start a model from noises and from perturbed ones; all weights share the same perturbations eta.

    Args:
        generate: The model.
        noise: Start noises (N, ...).
        weights: W of the perturbations.
        perturbations: How many of each start, P.
        generator: Source of eta.
    """
    etas = [torch.randn(noise.shape, generator=generator) for _ in range(perturbations)]
    results = [torch.stack([generate(perturb(noise, eta, weight)) for eta in etas]) for weight in weights]
    return Perturbed(generate(noise), torch.stack(results))


def chunk_generator(policy: Policy, observation: Tensor, solver: Solver) -> Generate:
    """A policy's way from start noises (N, T, A) to normalised action chunks, one for each observation (N, O, Do).

    Raises:
        ValueError: If the solver adds noise, or does not go with the policy.
    """
    if draws(solver.plan(policy.path)) > 1:
        raise ValueError(f"solver={solver.name} adds noise on its way from a given start noise; use ddim or euler")
    condition = policy.encode(observation)
    return lambda noise: policy.solve(condition, solver, noise[None]) / policy.data_scale


class PerturbedAgent:
    """Acts like an agent, row i from start noises that are perturbed by weight i at every plan.

    Args:
        agent: The agent.
        weights: W of each row (B,).
        generators: Source of each row's perturbations (B).
    """

    def __init__(self, agent: Agent, weights: Sequence[float], generators: Sequence[torch.Generator]) -> None:
        self.agent, self.generators = agent, list(generators)
        self.weights = torch.tensor(weights)[:, None, None]
        self.obs, self.obs_steps = agent.obs, agent.obs_steps

    def act(self, observations: NDArray[np.float64], generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """Actions to execute (B, action_steps, 2) in px, given the last observations (B, obs_steps, Do)."""
        policy, spec = self.agent.policy, self.agent.spec
        shape = (spec.horizon, spec.action_dim)
        noise, eta = (torch.stack([torch.randn(shape, generator=g) for g in each]) for each in
                      (generators, self.generators))  # fmt: skip
        generate = chunk_generator(policy, torch.from_numpy(observations).float(), self.agent.solver)
        chunk = policy.action.unnormalize(generate(perturb(noise, eta, self.weights)))
        first = spec.obs_steps - 1
        return chunk[:, first : first + spec.action_steps].double().numpy()


class Rollouts(NamedTuple):
    """Episodes from one start: the first unperturbed, then P for each of M weights.

    Attributes:
        recording: All episodes.
        rows: Their results.
        weights: M weights.
        perturbations: P.
    """

    recording: Recording
    rows: list[EpisodeRow]
    weights: Sequence[float]
    perturbations: int

    def block_paths(self) -> NDArray[np.float64]:
        """The block's positions (steps, 1 + M * P, 2) in px, a finished episode staying as it ended."""
        return self.recording.states[:, :, 2:4]

    def block_displacement(self) -> list[float]:
        """For each weight, the block's distance from the unperturbed episode's, mean over steps and episodes [px]."""
        paths = self.block_paths()
        distance = np.linalg.norm(paths[:, 1:] - paths[:, :1], axis=2).mean(axis=0)
        return distance.reshape(len(self.weights), self.perturbations).mean(axis=1).tolist()

    def coverage_change(self) -> list[float]:
        """For each weight, the mean absolute difference of the maximal coverage from the unperturbed episode's."""
        coverage = np.array([row.metrics["coverage"] for row in self.rows])
        change = np.abs(coverage[1:] - coverage[0])
        return change.reshape(len(self.weights), self.perturbations).mean(axis=1).tolist()


def perturbed_rollouts(
    agent: Agent, start: int, weights: Sequence[float], perturbations: int, max_steps: int
) -> Rollouts:
    """Roll an agent out from one start, unperturbed and perturbed; all weights share the same perturbations.

    Args:
        agent: A policy with a deterministic sampler.
        start: Start seed.
        weights: W of the perturbations.
        perturbations: Episodes of each weight.
        max_steps: Steps after which an episode ends.
    """
    each_row = [0.0, *(weight for weight in weights for _ in range(perturbations))]
    numbers = [0, *(number for _ in weights for number in range(perturbations))]
    generators = [torch_generator("cpu", "bijection rollout", start, number) for number in numbers]
    recorder, count = Recorder(), len(each_row)
    rows = evaluate(
        PerturbedAgent(agent, each_row, generators),
        [start] * count,
        seed=0,
        checkpoint=0,
        batch_size=count,
        max_steps=max_steps,
        on_step=recorder.on_step,
    )
    return Rollouts(recorder.recording(rows), rows, weights, perturbations)
