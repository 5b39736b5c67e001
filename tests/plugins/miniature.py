"""Diffusion Policy in miniature: what its policies do in `compute_loss`, in the same order, on a linear network."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn


class Field:
    """A normaliser of one field: halves it."""

    def normalize(self, values: Tensor) -> Tensor:
        return values / 2


class Fields:
    """The policy's normaliser, by name of the field."""

    def __getitem__(self, name: str) -> Field:
        return Field()


class MiniaturePolicy(nn.Module):
    """Normalises, draws noise and timesteps, adds the noise, puts back what is known, predicts, compares.

    Args:
        inpainting: Whether the observations are a part of the trajectory instead of a condition.
        prediction: `epsilon` or `sample`.
    """

    def __init__(self, inpainting: bool = False, prediction: str = "epsilon") -> None:
        super().__init__()
        self.noise_scheduler = DDPMScheduler(
            num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=prediction
        )
        self.normalizer = Fields()
        self.action_dim, self.obs_dim, self.n_obs_steps, self.horizon = 2, 3, 2, 8
        self.inpainting = inpainting
        width = 5 if inpainting else 2
        self.model = nn.Linear(width, width)

    def mask_generator(self, shape: torch.Size) -> Tensor:
        """True where a number is known: the first observations, where they are a part of the trajectory."""
        known = torch.zeros(shape, dtype=torch.bool)
        known[:, : self.n_obs_steps, self.action_dim :] = True
        return known

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        action = self.normalizer["action"].normalize(batch["action"])
        trajectory = action
        if self.inpainting:
            trajectory = torch.cat([action, self.normalizer["obs"].normalize(batch["obs"])], dim=-1)
        known = self.mask_generator(trajectory.shape)
        noise = torch.randn(trajectory.shape, device=trajectory.device)
        timesteps = torch.randint(0, 100, (len(trajectory),), device=trajectory.device).long()
        noisy = self.noise_scheduler.add_noise(trajectory, noise, timesteps)
        noisy[known] = trajectory[known]
        self.seen = trajectory, noisy, timesteps
        target = noise if self.noise_scheduler.config.prediction_type == "epsilon" else trajectory
        self.target = target
        return (nn.functional.mse_loss(self.model(noisy), target, reduction="none") * ~known).mean()


def batch_of(policy: MiniaturePolicy, size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size, policy.horizon)
    return {
        "obs": torch.randn(*shape, policy.obs_dim, generator=generator),
        "action": torch.randn(*shape, policy.action_dim, generator=generator),
    }
