"""Consistency training: one network call from noise to data, learned without a teacher's samples.

The consistency function f maps every point x + s e of a path to the path's clean end (Song et al., 2023). Training
makes f agree on two neighbouring noise levels of the same sample and the same noise.

    s_min = s_1  <  ...  <  s_i  <  s_{i+1}  <  ...  <  s_N = s_max
                             |          |
                   the target, fixed    what learns

Two recipes say which levels there are, and which weights make the target:

    ct    consistency training (Song et al., 2023): levels grow from 2 to 151, all alike likely; the target is that of
          an averaged teacher, whose decay follows them from 0.9; metrics are not weighted; LPIPS
    ict   its improved form (Song & Dhariwal, 2023): levels double from 11 to 1,281, drawn from a lognormal law; the
          target is that of the weights themselves; weights 1 / (s_{i+1} - s_i); a pseudo-Huber metric

Points are held as the network sees them, at unit variance. With the data's standard deviation d, the network F, and
r^2 = s^2 - s_min^2 (the data counts as noised to s_min: Song et al., 2023, algorithm 1):

    x_s = (x + s e) / sqrt(s^2 + d^2),    alpha_s = 1 / sqrt(s^2 + d^2),    sigma_s = alpha_s r
    f   = c_skip x_s / alpha_s + c_out F(x_s, 250 log s)
    c_skip = d^2 / ((s - s_min)^2 + d^2),    c_out = (s - s_min) d alpha_s

which is the form of diffusers' `ConsistencyModelPipeline`; at s_min f is the identity.

Shape legend: B samples, ... the shape of one sample, D its numbers, N noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from immiscible_policy.path.base import (
    Level,
    Network,
    PathSample,
    Prediction,
    ProbabilityPath,
    per_sample,
    require_trailing,
)

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
RECIPES = ("ct", "ict")
FIRST, LAST = {"ct": 2, "ict": 10}, {"ct": 150, "ict": 1280}
"""s_0 and s_1 of each recipe, from which the number of noise levels at the beginning and at the end follows."""
MU = 0.9
"""mu_0: decay of the averaged teacher at the beginning (Song et al., 2023, table 3)."""
P_MEAN, P_STD = -1.1, 2.0
"""Mean and standard deviation of the logarithm of the noise levels that training draws."""
SAMPLING_LEVELS = 40
"""The published grid of sampling levels has so many; more network calls take a finer grid of as many as there are."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""Compares samples (B, ...) row by row: (B,)."""


class Consistency(ProbabilityPath):
    """Two neighbouring noise levels of one path, on which a network's clean samples are to agree.

    Times are pairs (B, 2) of noise levels, the upper one first; a sample's `target` is the point at the lower level.

    Args:
        training_steps: Length of the training, on which the number of noise levels depends.
        sigma_data: Standard deviation d of the clean samples.
        recipe: `ct` or `ict`.
        teacher: The network with averaged weights, which makes the targets of `ct`; None for a path that is only
            sampled from.
        metric: Compares clean samples; None for a path that is only sampled from.
        repeat: Inside it the network drops the same units as in the call before: target and learner share their
            dropout.

    Raises:
        ValueError: If training_steps is below 1, or the recipe is unknown.
    """

    solvers: tuple[str, ...] = ("renoise",)
    clipped = True

    def __init__(
        self,
        training_steps: int,
        *,
        sigma_data: float,
        metric: Metric | None,
        recipe: str = "ict",
        teacher: Network | None = None,
        repeat: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if training_steps < 1:
            raise ValueError(f"training_steps={training_steps}: needs 1 or more")
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe}: choose from {', '.join(RECIPES)}")
        self.training_steps, self.sigma_data, self.recipe = training_steps, sigma_data, recipe
        self.metric, self.teacher, self.repeat = metric, teacher, repeat

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Pairs of neighbouring levels (count, 2), by the recipe's law, from as many as the training step has."""
        sigmas = noise_levels(intervals(step, self.training_steps, self.recipe) + 1)
        law = level_law(sigmas) if self.recipe == "ict" else torch.full((len(sigmas) - 1,), 1 / (len(sigmas) - 1))
        upper_ends = law.cumsum(0).float().to(generator.device)
        drawn = torch.rand(count, generator=generator, device=generator.device)
        i = torch.searchsorted(upper_ends[:-1], drawn, right=True)
        levels = sigmas.float().to(generator.device)
        return torch.stack([levels[i + 1], levels[i]], dim=1)

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """The points at both levels, from the same noise."""
        upper, lower = (
            (clean + s * noise) / (s.square() + self.sigma_data**2).sqrt()
            for s in (per_sample(level, clean) for level in t.unbind(1))
        )
        return PathSample(upper, lower, t)

    def network_time(self, t: Tensor) -> Tensor:
        """250 log s, for noise levels t (B,)."""
        return 250 * t.log()

    def clean(self, network: Network, noisy: Tensor, t: Tensor) -> Tensor:
        """F (B, ...), float32, for points (B, ...) at noise levels t (B,) (Song et al., 2023, equation 5)."""
        alpha, sigma = (per_sample(values, noisy) for values in self.coefficients(t))
        return self.split(self.evaluate(network, noisy, t), noisy, alpha, sigma).clean

    def loss(self, network: Network, sample: PathSample) -> Tensor:
        """Mean of metric(f(upper point), f(lower point)), a scalar; `ict` divides by s_{i+1} - s_i.

        The second is the target, without gradient: the teacher's, or that of the same weights and the same dropout.

        Raises:
            ValueError: If there is no metric, or no teacher where the recipe needs one.
        """
        if self.metric is None or (self.recipe == "ct" and self.teacher is None):
            raise ValueError("this model was built without its metric and only samples; build it with the metric")
        upper, lower = sample.t.unbind(1)
        learned = self.clean(network, sample.noisy, upper)
        with torch.no_grad(), self.repeat():
            target = self.clean(self.teacher or network, sample.target, lower)
        distance = self.metric(learned, target)
        return (distance / (upper - lower) if self.recipe == "ict" else distance).mean()

    def keep(self, step: int) -> float:
        """Decay of the averaged teacher, mu(k) = exp(s_0 log mu_0 / N(k)), N(k) levels at step k from 0 on."""
        levels = intervals(step, self.training_steps, "ct") + 1
        return math.exp(FIRST["ct"] * math.log(MU) / levels)

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """The clean sample is f; the noise is what remains."""
        variance, s = self.sigma_data**2, ((sigma / alpha) ** 2 + SIGMA_MIN**2) ** 0.5
        c_skip, c_out = variance / ((s - SIGMA_MIN) ** 2 + variance), (s - SIGMA_MIN) * self.sigma_data * alpha
        clean = c_skip / alpha * noisy + c_out * output
        return Prediction(clean, (noisy - alpha * clean) / sigma)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_s and sigma_s at noise levels t (B,)."""
        alpha = (t.square() + self.sigma_data**2).rsqrt()
        return alpha, alpha * (t.square() - SIGMA_MIN**2).clamp(min=0).sqrt()

    def levels(self, count: int, spacing: str) -> list[Level]:
        """From s_max down, evenly spaced in s^(1/7) on the published grid of 40: diffusers' own.

        Raises ValueError if the count is below 1, or the spacing is not `trailing`.
        """
        require_trailing(spacing, "a consistency model")
        if count < 1:
            raise ValueError(f"sampling_steps={count}: needs 1 or more")
        finest = max(SAMPLING_LEVELS, count)
        grid = noise_levels(finest).flip(0)[:: finest // count][:count]
        alphas, sigmas = self.coefficients(grid)
        times = self.network_time(grid)
        return [Level(*numbers) for numbers in zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)]

    def start(self, noise: Tensor) -> Tensor:
        """The noise at s_max."""
        return noise * (SIGMA_MAX / math.hypot(SIGMA_MAX, self.sigma_data))


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(|x - y|^2 + c^2) - c of each row (B,), with c = 0.00054 sqrt(D) (Song & Dhariwal, 2023, equation 7)."""
    squared = (x - y).square().flatten(1)
    c = 0.00054 * math.sqrt(squared.shape[1])
    return (squared.sum(dim=1) + c * c).sqrt() - c


def intervals(step: int | None, training_steps: int, recipe: str = "ict") -> int:
    """Intervals between noise levels, N(k) - 1; the step k counts from 0, None is the end of training.

    `ict`: 10, doubled in equal parts of the training up to 1,280. `ct`: the square of their number grows steadily,
    ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) (Song et al., 2023, appendix C).
    """
    first, last = FIRST[recipe], LAST[recipe]
    if recipe == "ct":
        passed = 1.0 if step is None else min(step / training_steps, 1.0)
        return math.ceil(math.sqrt(passed * ((last + 1) ** 2 - first**2) + first**2) - 1)
    parts = int(math.log2(last // first)) + 1
    part = parts if step is None else step // max(training_steps // parts, 1)
    return min(first * 2 ** min(part, parts), last)


def noise_levels(count: int) -> Tensor:
    """s_1 < ... < s_count, float64, evenly spaced in s^(1/7) (Karras et al., 2022, equation 5)."""
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return torch.linspace(low, high, count, dtype=torch.float64, device="cpu") ** RHO


def level_law(sigmas: Tensor) -> Tensor:
    """Probability (N - 1,) of each interval of the levels (N,): lognormal (Song & Dhariwal, 2023, equation 10)."""
    mass = torch.erf((sigmas.log() - P_MEAN) / (math.sqrt(2) * P_STD)).diff()
    return mass / mass.sum()
