"""Consistency training: one network call from noise to image, trained without a teacher's samples.

The consistency function f maps every point x + sigma z of a path to the path's clean end (Song et al., 2023). Training
makes f agree on two neighbouring noise levels of the same image and the same noise, the noise chosen by a selector.

    sigma_min = sigma_1  <  ...  <  sigma_i  <  sigma_{i+1}  <  ...  <  sigma_N = sigma_max
                                       |            |
                             the target, fixed    what learns

The recipe is improved consistency training (iCT; Song & Dhariwal, 2023). It departs from the consistency training of
2023 that the papers on immiscible noise built on: the metric is pseudo-Huber, not LPIPS (`metric=lpips` puts that one
back, and nothing else), the target comes from the learning weights themselves, not from their average, the number of
levels doubles from 10 to 1,280, and levels are drawn from a lognormal law.

Shape legend: B images, C channels, H x W pixels, D = C H W, N noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from torch import Tensor, nn

from immiscible_policy.image.diffusion import PIXEL_STD
from immiscible_policy.image.model import ImageSample, require_scale, require_steps
from immiscible_policy.noise import Selector

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
FIRST, LAST = 10, 1280
"""s_0 and s_1: intervals between noise levels at the beginning and at the end of training."""
P_MEAN, P_STD = -1.1, 2.0
"""Of the logarithm of the noise levels that training draws."""
MOST_STEPS = 40
"""Sampling steps that the scheduler knows at most."""

Metric = Callable[[Tensor, Tensor], Tensor]


class ConsistencyBatch(NamedTuple):
    """A training batch at two neighbouring noise levels.

    Attributes:
        noisy: x + sigma_{i+1} z (B, C, H, W).
        cleaner: x + sigma_i z (B, C, H, W).
        sigma: sigma_{i+1} (B,).
        lower: sigma_i (B,).
    """

    noisy: Tensor
    cleaner: Tensor
    sigma: Tensor
    lower: Tensor


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(|x - y|^2 + c^2) - c of each row (B,), with c = 0.00054 sqrt(D) (Song & Dhariwal, 2023, equation 7)."""
    squared = (x - y).square().flatten(1)
    c = 0.00054 * math.sqrt(squared.shape[1])
    return (squared.sum(dim=1) + c * c).sqrt() - c


def intervals(step: int | None, training_steps: int) -> int:
    """Intervals between noise levels, N(k) - 1: 10, doubled in equal parts of the training up to 1,280.

    Args:
        step: Training step k, from 0; None for the end of training.
        training_steps: K, the length of the training.
    """
    parts = int(math.log2(LAST // FIRST)) + 1
    part = parts if step is None else step // max(training_steps // parts, 1)
    return min(FIRST * 2 ** min(part, parts), LAST)


def noise_levels(count: int) -> Tensor:
    """sigma_1 < ... < sigma_count, float64, evenly spaced in sigma^(1/7) (Karras et al., 2022, equation 5)."""
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return torch.linspace(low, high, count, dtype=torch.float64) ** RHO


def level_law(sigmas: Tensor) -> Tensor:
    """Probability (N - 1,) of each interval of the levels (N,): lognormal (Song & Dhariwal, 2023, equation 10)."""
    mass = torch.erf((sigmas.log() - P_MEAN) / (math.sqrt(2) * P_STD)).diff()
    return mass / mass.sum()


class ConsistencyModel(nn.Module):
    """Maps noisy images to clean ones in one call.

    What is noised is x = data_scale * pixels, of standard deviation sigma_data = 0.5 data_scale. The network is held
    in the form of diffusers' `ConsistencyModelPipeline`:
    f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(x / sqrt(sigma^2 + sigma_data^2), 250 log sigma),
    with c_skip = 1 and c_out = 0 at sigma_min.

    Args:
        denoiser: A `diffusers.UNet2DModel`, or a module called alike: F, (scaled x, time (B,)) -> object with
            `sample`. Its dropout is exchanged for one that can repeat itself.
        size: Side S of the images.
        training_steps: Length of the training, on which the number of noise levels depends.
        data_scale: Factor from pixels in [-1, 1] to x.
        metric: Compares pixels (B, 3, S, S) row by row, as `pseudo_huber`; None for a model that only samples.

    Raises:
        ValueError: If data_scale is not positive or training_steps is below 1.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        size: int,
        training_steps: int,
        data_scale: float = 1.0,
        metric: Metric | None = pseudo_huber,
    ) -> None:
        super().__init__()
        require_scale(data_scale)
        if training_steps < 1:
            raise ValueError(f"training_steps={training_steps}: needs 1 or more")
        self.denoiser = denoiser
        self.noise_shape = (3, size, size)
        self.training_steps = training_steps
        self.data_scale = data_scale
        self.metric = metric
        self._dropouts = _exchange_dropout(denoiser)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of what is noised."""
        return PIXEL_STD * self.data_scale

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None = None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> ConsistencyBatch:
        """Choose noise z for a batch of pixels (B, C, H, W) in [-1, 1], and two neighbouring noise levels.

        Args:
            pixels: Clean images.
            select: Chooses z for the scaled images.
            step: Training step, for the number of levels and for selectors with a schedule; None for the end.
            generator: Source of the noise and of the levels.
            prompts: Not used.
        """
        x = self.data_scale * pixels
        z = select(x, step=step, generator=generator)
        sigmas = noise_levels(intervals(step, self.training_steps) + 1)
        upper_ends = level_law(sigmas).cumsum(0).float().to(x.device)
        drawn = torch.rand(len(x), generator=generator, device=generator.device).to(x.device)
        i = torch.searchsorted(upper_ends[:-1], drawn, right=True)
        levels = sigmas.float().to(x.device)
        lower, sigma = levels[i], levels[i + 1]
        return ConsistencyBatch(x + _rows(sigma) * z, x + _rows(lower) * z, sigma, lower)

    def loss(self, batch: ConsistencyBatch) -> Tensor:
        """Mean of d(f(x + sigma_{i+1} z), f(x + sigma_i z)) / (sigma_{i+1} - sigma_i), a scalar.

        The second is the target: the same weights and the same dropout, without gradient.
        """
        if self.metric is None:
            raise ValueError("this model was built without its metric and only samples; build it with the metric")
        learned = self.consistency(batch.noisy, batch.sigma)
        with torch.no_grad(), self._same_dropout():
            target = self.consistency(batch.cleaner, batch.lower)
        distance = self.metric(learned / self.data_scale, target / self.data_scale)
        return (distance / (batch.sigma - batch.lower)).mean()

    def consistency(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F (B, C, H, W), float32, for noisy x and their noise levels sigma (B,) (Song et al., 2023, equation 5)."""
        variance, s = self.sigma_data**2, _rows(sigma)
        c_skip = variance / ((s - SIGMA_MIN).square() + variance)
        c_out = (s - SIGMA_MIN) * self.sigma_data / (s.square() + variance).sqrt()
        predicted = self.denoiser(x / (s.square() + variance).sqrt(), 250 * sigma.log()).sample
        return c_skip * x + c_out * predicted.float()

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int | None = None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageSample:
        """One call of the network, or several with fresh noise in between (Song et al., 2023, algorithm 1).

        Args:
            noise: Start noises (B, C, H, W); the first call sees them times sigma_max.
            steps: Calls of the network; None for 1.
            prompts: Not used.
            generator: Source of the fresh noise.

        Raises:
            ValueError: If steps is not 1 to 40, or is more than 1 without a generator.
        """
        sigmas = self.sampling_levels(1 if steps is None else steps)
        if len(sigmas) > 1 and generator is None:
            raise ValueError(f"sampling_steps={steps} needs a generator for the noise between the steps")
        x, predicted = SIGMA_MAX * noise, []
        for sigma, following in zip(sigmas, [*sigmas[1:], None], strict=True):
            clean = self.consistency(x, sigma.to(x).expand(len(x))).clamp(-self.data_scale, self.data_scale)
            predicted.append(clean / self.data_scale)
            if following is not None:
                assert generator is not None
                fresh = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
                x = clean + math.sqrt(float(following) ** 2 - SIGMA_MIN**2) * fresh
        return ImageSample(predicted[-1], torch.stack(predicted), sigmas)

    def sampling_levels(self, steps: int) -> Tensor:
        """Noise levels (steps,) at which sampling calls the network, from sigma_max down: those of `scheduler`.

        Raises:
            ValueError: If steps is not 1 to 40.
        """
        require_steps(steps, MOST_STEPS)
        scheduler = self.scheduler()
        scheduler.set_timesteps(steps)
        return scheduler.sigmas[:-1]

    def scheduler(self) -> CMStochasticIterativeScheduler:
        """The diffusers scheduler whose levels and parametrisation these are; it clips to pixels of data_scale 1."""
        return CMStochasticIterativeScheduler(
            num_train_timesteps=MOST_STEPS,
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            sigma_data=self.sigma_data,
            rho=RHO,
            clip_denoised=self.data_scale == 1,
        )

    @contextmanager
    def _same_dropout(self) -> Iterator[None]:
        """Inside, dropout keeps what it kept in the call before."""
        for dropout in self._dropouts:
            dropout.repeating = True
        try:
            yield
        finally:
            for dropout in self._dropouts:
                dropout.repeating = False


class RepeatableDropout(nn.Dropout):
    """Dropout that keeps the same numbers as in the call before while `repeating` is set.

    Args:
        p: Probability of a zero.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.repeating = False
        self.kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Of any shape; unchanged in evaluation mode."""
        if not self.training:
            return input
        if not self.repeating:
            self.kept = torch.empty_like(input, dtype=torch.bool).bernoulli_(1 - self.p)
        assert self.kept is not None
        return input * self.kept / (1 - self.p)


def _exchange_dropout(network: nn.Module) -> list[RepeatableDropout]:
    """Put a repeatable dropout in the place of each dropout that drops anything; returns the new ones."""
    exchanged = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                exchanged.append(RepeatableDropout(child.p))
                setattr(parent, name, exchanged[-1])
    return exchanged


def _rows(values: Tensor) -> Tensor:
    """One value for each image (B,), as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
