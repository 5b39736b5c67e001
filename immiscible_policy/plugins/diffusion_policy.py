"""Chosen noise for the policies of the original Diffusion Policy (Chi et al., RSS 2023), without an edit to its files.

Its policies draw noise inside `compute_loss(batch)` and add it through their `noise_scheduler` (a DDPMScheduler of
diffusers): the seam of `plugins.scheduler`. It fits those that diffuse with such a scheduler: the U-Net and the
transformer policies, from low-dimensional observations, images, and both.

Shape legend: B samples, T steps of the trajectory, D numbers per step, O observation steps, G numbers to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.noise import Selector
from immiscible_policy.noise.vanilla import Vanilla
from immiscible_policy.plugins.scheduler import chosen_noise
from immiscible_policy.randomness import torch_generator


def use_noise(policy: Any, select: Selector, step: Callable[[], int] | None = None) -> None:
    """Let a policy that diffuses train with chosen noise for its normalised trajectories (B, T, D) from now on.

    Only training is changed: in evaluation mode, and without gradients, as the workspaces validate, the loss is the
    plain one and stays comparable. With `vanilla` it always is. Chosen noise comes from a generator of its own, which
    the state of torch's global one fixes; the batches and the diffusion steps are those of training without a selector.

    `step` returns the training step; selectors with a schedule (`start=`, `stop=`, `ramp=`) need it.

    Raises ValueError if the policy is of another kind, so that an attribute is missing.
    """
    for name in ("compute_loss", "noise_scheduler", "normalizer", "mask_generator", "action_dim", "n_obs_steps"):
        if not hasattr(policy, name):
            raise ValueError(f"{type(policy).__name__} has no {name}; give a diffusion policy of Diffusion Policy")
    policy.compute_loss = ImmiscibleLoss(policy, select, step)


@dataclass(frozen=True)
class ImmiscibleLoss:
    """A policy's `compute_loss` with chosen noise; its class has the plain one. A copy of the policy gets its own."""

    policy: Any
    select: Selector
    step: Callable[[], int] | None

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """The policy's own loss of a batch, a scalar."""
        plain = type(self.policy).compute_loss
        validates = not (self.policy.training and torch.is_grad_enabled())
        if validates or isinstance(self.select, Vanilla):
            return plain(self.policy, batch)
        condition = observed(self.policy, batch["obs"])
        step = None if self.step is None else self.step()

        def choose(clean: Tensor) -> Tensor:
            free, generator = unknown(self.policy, clean), beside_global(clean.device)
            return self.select(clean, condition=condition, mask=free, step=step, generator=generator)

        with chosen_noise(self.policy.noise_scheduler, choose):
            return plain(self.policy, batch)


def beside_global(device: torch.device) -> torch.Generator:
    """A generator that the state of torch's global one fixes; the global one stays where it is."""
    state = torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    digest = blake2b(state.cpu().numpy().tobytes(), digest_size=8).digest()
    return torch_generator(device, "chosen noise", int.from_bytes(digest))


def observed(policy: Any, observation: Tensor | Mapping[str, Tensor]) -> Tensor | None:
    """What selectors that compare conditions (c2ot) compare (B, G): the numbers of the observations, normalised.

    The observation is numbers (B, T, D), or by name numbers and pictures (B, T, C, H, W), which are left out; None
    where there are pictures alone.
    """
    named = {"obs": observation} if isinstance(observation, Tensor) else observation
    numbers = {name: values for name, values in named.items() if values.ndim == 3}
    rows = [policy.normalizer[name].normalize(numbers[name])[:, : policy.n_obs_steps].flatten(1) for name in numbers]
    return torch.cat(rows, dim=1) if rows else None


def unknown(policy: Any, clean: Tensor) -> Tensor | None:
    """Which numbers of the trajectories (B, T, D) are diffused, where observations are part of them (inpainting).

    What is observed is put back after noising, so that it must not enter the distance. None where actions alone are
    diffused: all of them count.
    """
    return None if clean.shape[-1] == policy.action_dim else ~policy.mask_generator(clean.shape)
