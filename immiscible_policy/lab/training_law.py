"""Samplers whose noise follows the law that training saw, for policies trained with selected noise.

Training mixes an action chunk x with noise that a selector S chose for it; sampling starts from N(0, I), whatever the
observation. Two ways to close that gap without training again, both around the recurrence of DDIM:

    drafted    a first sampling from e ~ N(0, I) gives a draft x^; a second one starts from S(x^). Twice the steps.
    renoised   after every step, x_t' = sqrt(a') x_0 + sqrt(1 - a') S(x_0): the predicted chunk is noised anew as
               training would noise it, a' = alpha-bar of the next step. With S plain this is `sampler=renoise`, the
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
from immiscible_policy.policy.diffusion import DiffusionPolicy
from immiscible_policy.policy.sampling import denoise, denoising_steps, noise_paths

LAWS = ("drafted", "renoised")


class TrainingLawAgent:
    """Acts like an agent, its sampler's noise chosen as in training.

    Args:
        agent: The agent; its policy diffuses and sees numbers, and its sampler is DDIM.
        law: One of `LAWS`.
        select: The selector of its training, at full strength.
    """

    def __init__(self, agent: Agent, law: str, select: Selector) -> None:
        assert isinstance(agent.policy, DiffusionPolicy)
        self.agent, self.policy, self.law, self.select = agent, agent.policy, law, select
        self.obs, self.obs_steps = agent.obs, agent.obs_steps

    def act(self, observations: NDArray[np.float64], generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """As `Agent.act`."""
        condition = self.policy.condition(torch.from_numpy(observations).float())
        spec = self.agent.spec
        noise = noise_paths(generators, 1, (spec.horizon, spec.action_dim))[0]
        sample = self.drafted if self.law == "drafted" else self.renoised
        chunk = self.policy.action.unnormalize(sample(condition, noise, generators) / self.policy.data_scale)
        return chunk[:, spec.obs_steps - 1 :][:, : spec.action_steps].double().numpy()

    def drafted(self, condition: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Scaled chunks (B, T, A) from noise chosen for what plain noise (B, T, A) led to."""
        return self._ddim(condition, self._selected(self._ddim(condition, noise), generators))

    def renoised(self, condition: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Scaled chunks (B, T, A), noised anew after every step but the last; the first starts from plain noise."""
        alphas = self.policy.noising.alphas_cumprod
        visited = self.agent.sampler.timesteps(self.policy.diffusion_steps)
        x = noise
        for t, following in zip(visited, [*visited[1:], None], strict=True):
            clean = self._predicted(condition, x, t)
            if following is None:
                break
            a = alphas[following]
            x = a.sqrt() * clean + (1 - a).sqrt() * self._selected(clean, generators)
        return clean

    def _selected(self, clean: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.cat([self.select(x, generator=g) for x, g in zip(clean.split(1), generators, strict=True)])

    @torch.no_grad()
    def _ddim(self, condition: Tensor, noise: Tensor) -> Tensor:
        """What the agent's sampler makes of start noise (B, T, A)."""
        sampler, policy = self.agent.sampler, self.policy
        steps = denoising_steps(sampler, policy.noising.alphas_cumprod)
        t = torch.tensor(sampler.timesteps(policy.diffusion_steps))
        return denoise(policy.denoiser, steps, policy.data_scale, t, condition, noise[None])

    @torch.no_grad()
    def _predicted(self, condition: Tensor, x: Tensor, t: int) -> Tensor:
        """The clean chunk that the network sees in x (B, T, A) at step t, clipped as the sampler clips it."""
        a, limit = self.policy.noising.alphas_cumprod[t], self.policy.data_scale
        eps = self.policy.denoiser(x, torch.full((len(x),), t), condition).float()
        return ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-limit, limit)
