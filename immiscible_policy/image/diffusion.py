"""Unconditional image diffusion: DDPM training with noise chosen by a selector, DDIM sampling (eta = 0).

Shape legend: B images, C channels, H x W pixels, S sampling steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from immiscible_policy.image.model import ImageSample, require_scale
from immiscible_policy.noise import Selector

PIXEL_STD = 0.5
"""Standard deviation of natural images' pixels in [-1, 1]; 0.49 for CIFAR-10."""
STEPS = 50
"""Sampling steps where none are named."""


class NoisedImages(NamedTuple):
    """A training batch after noising.

    Attributes:
        noisy: x_t (B, C, H, W).
        noise: The noise to predict (B, C, H, W).
        t: Diffusion steps (B,).
    """

    noisy: Tensor
    noise: Tensor
    t: Tensor


class ImageDiffusion(nn.Module):
    """Denoises images (Ho et al., 2020): linear betas from 1e-4 to 0.02, the network predicts the noise.

    Pixels in [-1, 1] have a standard deviation of about 0.5. What is noised is x = data_scale * pixels, of standard
    deviation 0.5 data_scale (Figure 8 of arXiv 2505.18521 goes by this number; its default, 0.5, changes nothing).
    Sampling divides by the same factor, and clips predicted clean samples to pixels in [-1, 1].

    Args:
        denoiser: A `diffusers.UNet2DModel`, or a module called alike: (x_t (B, C, H, W), t (B,)) -> object whose
            `sample` is the predicted noise.
        size: Side S of the images.
        data_scale: Factor from pixels to what is diffused.
        diffusion_steps: Length of the noising chain.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(self, denoiser: nn.Module, *, size: int, data_scale: float = 1.0, diffusion_steps: int = 1000) -> None:
        super().__init__()
        require_scale(data_scale)
        self.denoiser = denoiser
        self.noise_shape = (3, size, size)
        self.data_scale = data_scale
        self.diffusion_steps = diffusion_steps
        self.noising = DDPMScheduler(**self._scheduler_options())

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None = None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> NoisedImages:
        """Choose noise and diffusion steps for a batch of pixels (B, C, H, W) in [-1, 1].

        Args:
            pixels: Clean images.
            select: Chooses the noise for the scaled images.
            step: Training step, for selectors with a schedule.
            generator: Source of the noise and of the diffusion steps.
            prompts: Not used.
        """
        x = self.data_scale * pixels
        noise = select(x, step=step, generator=generator)
        t = torch.randint(self.diffusion_steps, (len(x),), generator=generator, device=generator.device).to(x.device)
        return NoisedImages(self.noising.add_noise(x, noise, t), noise, t)

    def loss(self, batch: NoisedImages) -> Tensor:
        """Mean squared error of the predicted noise, a scalar (Ho et al., 2020, equation 14)."""
        return nn.functional.mse_loss(self.predicted_noise(batch.noisy, batch.t), batch.noise)

    def predicted_noise(self, noisy: Tensor, t: Tensor) -> Tensor:
        """The network's prediction (B, C, H, W), float32, for x_t and diffusion steps t (B,)."""
        return self.denoiser(noisy, t).sample.float()

    def predicted_clean(self, noisy: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Pixels x_0 that a noise prediction implies: (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), clipped to [-1, 1].

        Args:
            noisy: x_t (B, C, H, W), as diffused.
            noise: Predicted noise (B, C, H, W).
            t: Diffusion steps (B,).
        """
        alpha_bar = self.noising.alphas_cumprod.to(noisy.device)[t].view(-1, 1, 1, 1)
        return ((noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt() / self.data_scale).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int | None = None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageSample:
        """Denoise start noises with DDIM, eta = 0: a function of the start noise alone (Song et al., 2021).

        The steps are linearly spaced and begin at the end of the chain: 999, 979, ..., 19 for 50 of 1,000.

        Args:
            noise: Start noises (B, C, H, W).
            steps: Denoising steps; None for 50.
            prompts: Not used.
            generator: Not used: nothing else is random.

        Raises:
            ValueError: If the chain does not divide into so many steps.
        """
        scheduler = self.ddim(STEPS if steps is None else steps)
        x, predicted = noise, []
        for t in scheduler.timesteps:
            prediction = self.predicted_noise(x, t.to(x.device).expand(len(x)))
            x, clean = scheduler.step(prediction, t, x, eta=0.0, return_dict=False)
            predicted.append(clean / self.data_scale)
        return ImageSample(x / self.data_scale, torch.stack(predicted), scheduler.timesteps)

    def ddim(self, steps: int) -> DDIMScheduler:
        """The diffusers scheduler that `sample` steps with.

        Raises:
            ValueError: If the chain does not divide into so many steps.
        """
        if steps < 1 or self.diffusion_steps % steps:
            raise ValueError(f"sampling_steps={steps}: the {self.diffusion_steps} diffusion steps must divide by it")
        options = self._scheduler_options()
        scheduler = DDIMScheduler(**options, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        return scheduler

    def _scheduler_options(self) -> dict[str, Any]:
        return dict(
            num_train_timesteps=self.diffusion_steps,
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type="epsilon",
            clip_sample=True,
            clip_sample_range=self.data_scale,
        )
