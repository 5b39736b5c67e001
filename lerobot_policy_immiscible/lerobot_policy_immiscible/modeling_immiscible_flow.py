"""Policy type `immiscible_flow`: the networks of LeRobot's diffusion policy, trained by flow matching.

Paths and solver are those of `immiscible_policy`: a policy trained there acts here, and the other way round.

Legend: B samples in the batch, T steps of the horizon, A numbers per action, G numbers of the observations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.nn.functional import mse_loss

from immiscible_policy.path.flow import Flow
from immiscible_policy.solver import Solver, solve
from lerobot_policy_immiscible.configuration_immiscible_flow import ImmiscibleFlowConfig
from lerobot_policy_immiscible.training_noise import ChosenNoise

PATH = Flow()


class FlowMatching(DiffusionModel):
    """LeRobot's networks; loss and sampling go along straight paths from noise to actions."""

    config: ImmiscibleFlowConfig

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the velocity at uniform times, of a normalised batch."""
        action = batch[ACTION]  # (B, T, A)
        noise = torch.randn(action.shape, device=action.device)
        point = PATH.sample(action, noise, torch.rand(len(action), device=action.device))
        features = self._prepare_global_conditioning(batch)  # (B, G)
        velocity = self.unet(point.noisy, PATH.network_time(point.t), global_cond=features)
        loss = mse_loss(velocity, point.target, reduction="none")
        if self.config.do_mask_loss_for_padding:
            loss = loss * ~batch[f"{ACTION}_is_pad"].unsqueeze(-1)
        return loss.mean()

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Action chunks (B, T, A) from noise (B, T, A), drawn if there is none, for features (B, G)."""
        if noise is None:
            like = next(self.parameters())
            shape = (batch_size, self.config.horizon, self.config.action_feature.shape[0])
            noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        steps = self.config.num_inference_steps
        assert steps is not None  # its default is a number
        plan = Solver("euler", steps, self.config.spacing).plan(PATH)

        def calls(i: int, x: Tensor) -> Tensor:
            return self.unet(x, torch.full((len(x),), plan[i].t, device=x.device), global_cond=global_cond)

        limit = self.config.clip_sample_range if self.config.clip_sample else math.inf
        return solve(calls, PATH, plan, noise.unsqueeze(0), limit=limit)


class ImmiscibleFlowPolicy(ChosenNoise, DiffusionPolicy):
    """LeRobot's `DiffusionPolicy` with `FlowMatching` and `ChosenNoise`."""

    config_class = ImmiscibleFlowConfig
    name = "immiscible_flow"

    def __init__(self, config: ImmiscibleFlowConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.diffusion.__class__ = FlowMatching  # the same modules under the same names
