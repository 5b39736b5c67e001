"""The diffusion policy: what it learns (noise chosen by a selector) and how it acts (through a sampler).

Shape legend: B samples, O observation steps, Do numbers per observation, T horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from immiscible_policy.noise import Selector
from immiscible_policy.noise.inputs import draw
from immiscible_policy.policy.chunk import ChunkPolicy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.sampling import (
    Function,
    Replay,
    Sampler,
    Scheduler,
    denoise,
    denoise_by_diffusers,
    denoising_steps,
    diffusers_scheduler,
    draws,
    noise_paths,
)


class Noised(NamedTuple):
    """A training batch after noising; every field has B rows.

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


class DiffusionPolicy(ChunkPolicy):
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
        super().__init__(
            denoiser, observation, action, horizon=horizon, diffusion_steps=diffusion_steps, data_scale=data_scale
        )
        self.noising = DDPMScheduler(num_train_timesteps=diffusion_steps, beta_schedule="squaredcos_cap_v2")
        self._alphas_cumprod = self.noising.alphas_cumprod.clone()  # stays on the CPU, where samplers read it
        self._replay = Replay()

    def noised(
        self,
        observation: Tensor,
        action: Tensor,
        select: Selector,
        *,
        step: int,
        generator: torch.Generator,
        mask: Tensor | None = None,
        levels: range | None = None,
    ) -> Noised:
        """Choose noise and diffusion steps for a batch: the seam at which immiscible noise enters training.

        Args:
            observation: Observations (B, O, Do), in their own units.
            action: Action chunks (B, T, A), in their own units.
            select: Chooses the noise for the clean normalised actions.
            step: Training step, for selectors with a schedule.
            generator: Source of the noise and of the diffusion steps.
            mask: Boolean, broadcasts to the actions: which of them enter the selection's distance.
            levels: Diffusion steps at which the chosen noise is used, plain noise at the others; None: at all.
        """
        condition = self.condition(observation)
        x = self.clean(action)
        noise = select(x, condition=condition, mask=mask, step=step, generator=generator)
        t = torch.randint(self.diffusion_steps, (len(x),), generator=generator, device=generator.device)
        t = t.to(x.device)
        if levels is not None:
            chosen = ((t >= levels.start) & (t < levels.stop)).reshape(-1, 1, 1)
            noise = torch.where(chosen, noise, draw(x, generator))
        return Noised(self.noising.add_noise(x, noise, t), noise, t, condition)

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
        condition = self.features(observation)
        if len(generators) != len(condition):
            raise ValueError(f"{len(condition)} observations need as many generators; got {len(generators)}")
        start = (self.horizon, self.action.scale.shape[0])
        if sampler.engine == "eager":
            noise = noise_paths(generators, 1, start)[0].to(condition.device)
            x = denoise_by_diffusers(self.denoiser, self.scheduler(sampler), condition, noise, generators)
        else:
            steps = denoising_steps(sampler, self._alphas_cumprod)
            t = torch.tensor(sampler.timesteps(self.diffusion_steps), device=condition.device)
            noise = noise_paths(generators, draws(steps), start).to(condition.device)
            x = self._run(sampler, partial(denoise, self.denoiser, steps, self.data_scale), t, condition, noise)
        return self.action.unnormalize(x / self.data_scale)

    def _run(self, sampler: Sampler, function: Function, *inputs: Tensor) -> Tensor:
        """Call a function of tensors and weights; on a CUDA device, replay it."""
        if inputs[0].device.type != "cuda":
            return function(*inputs)
        weights = tuple(p.data_ptr() for p in self.denoiser.parameters())  # a recording reads them where they were
        return self._replay((sampler, weights), function, *inputs)

    def features(self, observation: Tensor) -> Tensor:
        """What the denoiser is given in sampling (B, O * Do): the same."""
        return self.condition(observation)

    def scheduler(self, sampler: Sampler) -> Scheduler:
        """The diffusers scheduler of a sampler, its timesteps set.

        Raises:
            ValueError: If the sampler has more steps than the noising chain.
        """
        return diffusers_scheduler(sampler, self.diffusion_steps, self.data_scale)
