"""The diffusion policy: what it learns (noise chosen by a selector) and how it acts (DDPM or DDIM).

Shape legend: B samples, O observation steps, Do numbers per observation, T horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from immiscible_policy.noise import Selector
from immiscible_policy.policy.normalizer import Normalizer

SAMPLERS = ("ddim", "ddpm")


@dataclass(frozen=True)
class Sampler:
    """How to denoise: the scheme and its number of steps.

    Raises:
        ValueError: If the name is unknown or steps < 1.
    """

    name: Literal["ddim", "ddpm"] = "ddim"
    steps: int = 10

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler={self.name}: known samplers are {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"sampling_steps={self.steps}: needs 1 or more")


class Noised(NamedTuple):
    """A training batch after noising; every field has B rows, so it splits into micro-batches.

    Attributes:
        noisy: x_t, noisy normalised actions (B, T, A).
        noise: The noise to predict (B, T, A).
        t: Diffusion steps (B,).
        condition: Normalised, flattened observations (B, O * Do).
    """

    noisy: Tensor
    noise: Tensor
    t: Tensor
    condition: Tensor

    def split(self, parts: int) -> list[Noised]:
        """Cut into micro-batches of (nearly) equal size."""
        return [Noised(*rows) for rows in zip(*(field.chunk(parts) for field in self), strict=True)]


class DiffusionPolicy(nn.Module):
    """Denoises action chunks given the last observations (Chi et al., RSS 2023).

    Args:
        denoiser: Predicts noise from (noisy (B, T, A), t (B,), condition (B, O * Do)).
        observation: Normaliser of one observation.
        action: Normaliser of one action.
        horizon: T, steps in a chunk.
        diffusion_steps: Length of the noising chain.
        data_scale: Factor on the normalised actions before selection and diffusion, undone after sampling; the
            sampler's clipping range is scaled with it.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        observation: Normalizer,
        action: Normalizer,
        *,
        horizon: int,
        diffusion_steps: int = 100,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not data_scale > 0:
            raise ValueError(f"data_scale={data_scale}: needs a number above 0")
        self.denoiser = denoiser
        self.observation = observation
        self.action = action
        self.horizon = horizon
        self.diffusion_steps = diffusion_steps
        self.data_scale = data_scale
        self.noising = DDPMScheduler(**self._scheduler_options(), variance_type="fixed_small")

    def noised(
        self,
        observation: Tensor,
        action: Tensor,
        select: Selector,
        *,
        step: int,
        generator: torch.Generator,
        mask: Tensor | None = None,
    ) -> Noised:
        """Choose noise and diffusion steps for a batch: the seam at which immiscible noise enters training.

        Args:
            observation: Observations (B, O, Do), in their own units.
            action: Action chunks (B, T, A), in their own units.
            select: Chooses the noise for the clean normalised actions.
            step: Training step, for selectors with a schedule.
            generator: Source of the noise and of the diffusion steps.
            mask: Boolean, broadcasts to the actions: which of them enter the selection's distance.
        """
        condition = self.condition(observation)
        x = self.clean(action)
        noise = select(x, condition=condition, mask=mask, step=step, generator=generator)
        t = torch.randint(self.diffusion_steps, (len(x),), generator=generator, device=generator.device)
        t = t.to(x.device)
        return Noised(self.noising.add_noise(x, noise, t), noise, t, condition)

    def clean(self, action: Tensor) -> Tensor:
        """What is noised (B, T, A): normalised, scaled action chunks."""
        return self.data_scale * self.action.normalize(action)

    def loss(self, batch: Noised) -> Tensor:
        """Mean squared error of the predicted noise, a scalar (Ho et al., 2020, equation 14)."""
        prediction = self.denoiser(batch.noisy, batch.t, batch.condition)
        return nn.functional.mse_loss(prediction.float(), batch.noise)

    @torch.no_grad()
    def sample(
        self,
        observation: Tensor,
        sampler: Sampler,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Denoise one action chunk per observation, starting from plain Gaussian noise.

        Args:
            observation: Observations (B, O, Do), in their own units.
            sampler: Scheme and number of denoising steps.
            generators: One source of noise per row, so that a row does not depend on its neighbours.

        Returns:
            Action chunks (B, T, A), in their own units.

        Raises:
            ValueError: If the rows and the generators differ in number, or there are more steps than the chain has.
        """
        if len(generators) != len(observation):
            raise ValueError(f"{len(observation)} observations need as many generators; got {len(generators)}")
        scheduler = self.scheduler(sampler)
        condition = self.condition(observation)
        shape = (self.horizon, self.action.scale.shape[0])
        noise = [torch.randn(shape, generator=g, device=g.device).to(condition.device) for g in generators]
        x = torch.stack(noise)  # (B, T, A)
        rows: Any = list(generators)  # diffusers takes one per row, though its annotation says one in all
        for t in scheduler.timesteps:
            steps = t.to(x.device).expand(len(x))
            prediction = self.denoiser(x, steps, condition).float()
            x = scheduler.step(prediction, t, x, generator=rows, return_dict=False)[0]
        return self.action.unnormalize(x / self.data_scale)

    def condition(self, observation: Tensor) -> Tensor:
        """Normalise and flatten observations (B, O, Do) to (B, O * Do)."""
        return self.observation.normalize(observation).flatten(1)

    def scheduler(self, sampler: Sampler) -> DDPMScheduler | DDIMScheduler:
        """The diffusers scheduler of a sampler, its timesteps set.

        Raises:
            ValueError: If the sampler has more steps than the noising chain.
        """
        if sampler.steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps={sampler.steps}: the policy was trained with {self.diffusion_steps} diffusion steps"
            )
        options = self._scheduler_options()
        scheduler: DDPMScheduler | DDIMScheduler
        if sampler.name == "ddim":
            scheduler = DDIMScheduler(**options)
        else:
            scheduler = DDPMScheduler(**options, variance_type="fixed_small")
        scheduler.set_timesteps(sampler.steps)
        return scheduler

    def _scheduler_options(self) -> dict:
        return dict(
            num_train_timesteps=self.diffusion_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
            clip_sample=True,
            clip_sample_range=self.data_scale,
        )
