"""Pseudo linear multi-step sampling (Liu et al., 2022), with which Stable Diffusion's authors sample: diffusers' own.

It reads the three network outputs before the present one, which the recurrence of the other solvers has no place for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.path.base import Network
from immiscible_policy.path.ddpm import Ddpm


@dataclass(frozen=True)
class Pndm:
    """PNDM without its Runge-Kutta steps, over the grid of Stable Diffusion v1: 20 steps visit 951, 901, ..., 1.

    The second time is visited twice, so that S steps call the network S + 1 times.

    Raises ValueError if steps < 2: one step would visit time 1 alone, where hardly any noise is expected.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"sampling_steps={self.steps}: solver=pndm needs 2 or more")

    def scheduler(self, path: Ddpm) -> Any:
        """Diffusers' scheduler on a path's chain; a ValueError for more steps than it has, or another prediction."""
        if path.prediction == "sample":
            raise ValueError("solver=pndm: needs a network that predicts epsilon or v_prediction")
        if self.steps >= path.chain:  # the grid is shifted by one
            raise ValueError(f"sampling_steps={self.steps}: the chain has {path.chain} diffusion steps; use fewer")
        from diffusers.schedulers.scheduling_pndm import PNDMScheduler  # takes seconds to import

        chain = {name: path.noising.config[name] for name in ("beta_schedule", "beta_start", "beta_end")}
        scheduler = PNDMScheduler(
            path.chain, **chain, prediction_type=path.prediction, skip_prk_steps=True, steps_offset=1
        )
        scheduler.set_timesteps(self.steps)
        return scheduler

    def solve(self, network: Network, path: Ddpm, noise: Tensor) -> Tensor:
        """Clean samples (B, ...), without bounds, from start noises (B, ...)."""
        scheduler, x = self.scheduler(path), noise
        for t in scheduler.timesteps:
            output = network(x, t.to(x.device).expand(len(x))).float()
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return torch.as_tensor(x)
