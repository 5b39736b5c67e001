"""Samplers whose noise follows the law that training saw, for policies trained with selected noise.

Training mixes an action chunk x with noise that a selector S chose for it; sampling starts from N(0, I), whatever the
observation. Two ways to close that gap without training again, both around the recurrence of DDIM:

    drafted    a first sampling from e ~ N(0, I) gives a draft x^; a second one starts from S(x^). Twice the steps.
    renoised   after every step, x_t' = sqrt(a') x_0 + sqrt(1 - a') S(x_0): the predicted chunk is noised anew as
               training would noise it, a' = alpha-bar of the next step. With S plain this is `solver=renoise`, the
               control that shows what renoising alone does.

Every row selects with its own source of randomness, so the selector has to choose within one sample, as KNN does.

Shape legend: B rows, O observation steps, Do numbers per observation, T horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.evaluation.agent import Agent
from immiscible_policy.noise import Selector
from immiscible_policy.solver import noise_rows

LAWS = ("drafted", "renoised")


class TrainingLawAgent:
    """Acts like an agent, its sampler's noise chosen as in training.

    Args:
        agent: The agent; its policy diffuses and sees numbers, and its solver is DDIM.
        law: One of `LAWS`.
        select: The selector of its training, at full strength.
    """

    def __init__(self, agent: Agent, law: str, select: Selector) -> None:
        self.agent, self.policy, self.law, self.select = agent, agent.policy, law, select
        self.obs, self.obs_steps = agent.obs, agent.obs_steps

    def act(self, observations: NDArray[np.float64], generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """As `Agent.act`."""
        condition = self.policy.encode(torch.from_numpy(observations).float())
        spec = self.agent.spec
        noise = noise_rows(generators, 1, (spec.horizon, spec.action_dim))[0]
        sample = self.drafted if self.law == "drafted" else self.renoised
        chunk = self.policy.action.unnormalize(sample(condition, noise, generators) / self.policy.data_scale)
        return chunk[:, spec.obs_steps - 1 :][:, : spec.action_steps].double().numpy()

    def drafted(self, condition: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Scaled chunks (B, T, A) from noise chosen for what plain noise (B, T, A) led to."""
        draft = self.policy.solve(condition, self.agent.solver, noise[None])
        return self.policy.solve(condition, self.agent.solver, self._selected(draft, generators)[None])

    @torch.no_grad()
    def renoised(self, condition: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Scaled chunks (B, T, A), noised anew after every step but the last; the first starts from plain noise."""
        policy, plan, x = self.policy, self.agent.solver.plan(self.policy.path), noise
        for step, after in zip(plan, [*plan[1:], None], strict=True):
            output = policy.network(x, torch.full((len(x),), step.t), condition).float()
            split = policy.path.split(output, x, step.alpha, step.sigma)
            clean = split.clean.clamp(-policy.data_scale, policy.data_scale)
            if after is not None:
                x = after.alpha * clean + after.sigma * self._selected(clean, generators)
        return clean

    def _selected(self, clean: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.cat([self.select(x, generator=g) for x, g in zip(clean.split(1), generators, strict=True)])
