"""The noising chain of denoising diffusion (Ho et al., 2020): x_t = sqrt(a_t) x + sqrt(1 - a_t) e, a_t = alpha-bar.

What the network learns, and what its output f then says of x_t (Salimans & Ho, 2022, appendix D):

    epsilon        e                              x = (x_t - sigma f) / alpha       e = f
    sample         x                              x = f                             e = (x_t - alpha f) / sigma
    v_prediction   alpha e - sigma x              x = alpha x_t - sigma f           e = sigma x_t + alpha f

A chain of C steps is visited by S network calls at::

    trailing   C - 1, C - 1 - C / S, ...  rounded: the grid starts where the chain ends, however few the calls are
    leading    ..., 2d, d, 0 backwards, d = C / S rounded down: as published (for C = 100 it starts at 90 with S = 10)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.path.base import Level, Network, PathSample, Prediction, ProbabilityPath, add_scaled, per_sample

PREDICTIONS = ("epsilon", "sample", "v_prediction")
LONGEST_CHAIN = 100_000
BETAS: dict[str, dict[str, Any]] = {
    "squaredcos_cap_v2": {},
    "linear": {"beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
}
"""Schedules by diffusers' names: Nichol & Dhariwal (2021); Ho et al. (2020); Stable Diffusion."""


class Ddpm(ProbabilityPath):
    """A chain of noise levels, and a network that predicts noise (Ho et al., 2020, equation 14), sample or velocity.

    Args:
        chain: C, length of the chain; times are its steps 0 to C - 1.
        betas: Its schedule, a key of `BETAS`.
        prediction: What the network predicts, one of `PREDICTIONS`.
        min_snr: Weigh the squared error of the clean sample by min(SNR, min_snr), SNR = a_t / (1 - a_t), whatever is
            predicted (Hang et al., 2023, section 3.4; they take 5); None: plain mean squared error of the target.

    Raises:
        ValueError: If the chain is empty, a name is unknown, or min_snr is not above 0.
    """

    solvers: tuple[str, ...] = ("ddim", "ddpm", "dpmpp", "euler", "heun", "renoise")
    clipped = True

    def __init__(
        self,
        chain: int,
        *,
        betas: str = "squaredcos_cap_v2",
        prediction: str = "epsilon",
        min_snr: float | None = None,
    ) -> None:
        if not 1 <= chain <= LONGEST_CHAIN:
            raise ValueError(f"diffusion_steps={chain}: needs 1 to {LONGEST_CHAIN:,}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction}: choose from {', '.join(PREDICTIONS)}")
        if betas not in BETAS:
            raise ValueError(f"betas={betas}: choose from {', '.join(BETAS)}")
        if min_snr is not None and not min_snr > 0:
            raise ValueError(f"min_snr={min_snr}: needs a number above 0")
        self.chain, self.prediction, self.min_snr = chain, prediction, min_snr
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # takes seconds to import

        with torch.device("cpu"):  # whatever device a network is being built on
            self.noising = DDPMScheduler(num_train_timesteps=chain, beta_schedule=betas, **BETAS[betas])
            self.alphas_cumprod = self.noising.alphas_cumprod.clone()  # stays there, where solvers read it

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Uniform over the chain, int64."""
        return torch.randint(self.chain, (count,), generator=generator, device=generator.device)

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Noise the clean samples to the chain's steps t."""
        target = {"epsilon": noise, "sample": clean}.get(self.prediction)
        if target is None:
            target = self.noising.get_velocity(clean, noise, t)
        return PathSample(self.noising.add_noise(clean, noise, t), target, t)

    def loss(self, network: Network, sample: PathSample) -> Tensor:
        """Mean squared error, weighted by min-SNR where that is chosen."""
        if self.min_snr is None:
            return super().loss(network, sample)
        weight = per_sample(self.weight(sample.t), sample.noisy)
        return (weight * (self.evaluate(network, sample.noisy, sample.t) - sample.target).square()).mean()

    def weight(self, t: Tensor) -> Tensor:
        """Factor (B,) on the squared error of the target that makes min(SNR, min_snr) of the clean sample's."""
        alpha, sigma = self.coefficients(t)
        snr = (alpha / sigma).square()
        of_clean = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[self.prediction]
        return snr.clamp(max=self.min_snr) / of_clean

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """Module docstring."""
        if self.prediction == "epsilon":
            return Prediction(add_scaled(noisy, output, -sigma).div_(alpha), output)
        if self.prediction == "sample":
            return Prediction(output.clone(), add_scaled(noisy, output, -alpha).div_(sigma))
        return Prediction(add_scaled(alpha * noisy, output, -sigma), add_scaled(sigma * noisy, output, alpha))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t)."""
        a = self.noising.alphas_cumprod.to(t.device)[t]  # `sample` brought them: captured steps must not wait
        return a.sqrt(), (1 - a).sqrt()

    def levels(self, count: int, spacing: str) -> list[Level]:
        """Steps of the chain, as drawn in the module docstring.

        Raises ValueError if there are more levels than the chain has, or the spacing is unknown.
        """
        if count > self.chain:
            raise ValueError(f"sampling_steps={count}: the chain has {self.chain} diffusion steps")
        if spacing == "trailing":
            steps = [round(self.chain - i * self.chain / count) - 1 for i in range(count)]
        elif spacing == "leading":
            if count == 1:
                raise ValueError("sampling_steps=1: spacing=leading visits t = 0 alone, without noise; use trailing")
            steps = [i * (self.chain // count) for i in reversed(range(count))]
        else:
            raise ValueError(f"spacing={spacing}: choose trailing or leading")
        bars = [float(self.alphas_cumprod[t]) for t in steps]
        return [Level(t, math.sqrt(a), math.sqrt(1 - a)) for t, a in zip(steps, bars, strict=True)]
