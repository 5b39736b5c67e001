"""How much of the noise no denoiser can tell: the variance of the training target given its input.

With x_t = a x + s eps, a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar), and one batch of B samples as the data, the error
that remains for the best denoiser is E Var(eps | x_t). Where many samples, each with some noise, lead to the same x_t
(miscible), it is large. Given x_t the noise is one of

    eps_j = (x_t - a x_j) / s    with weight    w_j ~ N(eps_j; 0, I) r(x_j, eps_j),    j = 1..B,

where r(x, eps) = p(eps | x) / N(eps; 0, I) says what the selector made of plain noise. Plain noise has r = 1, and its
variance is exact. For a selector r is not known in general, but *every* denoiser errs at least as much as the best
one: the error of any on pairs that the selector really drew is an upper bound. The value reported is the least among

    plain:       r = 1
    nearest:     r = k (1 - F_x(|x - eps|^2))^(k - 1), F_x the noncentral chi-squared distribution function
                 (D degrees of freedom, noncentrality |x|^2): the law of KNN, several k
    assigned:    r = exp(phi(x) + psi(eps) - beta |x - eps|^2), phi and psi such that both marginals are kept:
                 entropic optimal transport, the law of a batch's noise dealt out among its samples, several beta.

For a selector that pairs within a batch the figure is for this batch alone, paired afresh again and again. In
training a sample meets ever new companions, its noise is less regular, and more variance remains.

Shape legend: B samples, D numbers per sample, Q queries x_t, K plain noises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.audit.statistics import require_samples
from immiscible_policy.noise.inputs import draw
from immiscible_policy.noise.selector import Selector

ALPHA_BARS = (0.99, 0.9, 0.5, 0.1, 0.01)
CANDIDATES = (2, 4, 8, 16, 64, 256)
"""k of the `nearest` denoisers."""
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""beta of the `assigned` denoisers, times the standard deviation of |x - eps|^2 under plain noise."""
SINKHORN_NOISES, SINKHORN_STEPS = 1024, 100

LogRatio = Callable[[Tensor, float, float], Tensor]
"""log r(x_j, eps_j) (Q, B), up to what all j share, at queries x_t (Q, D) and (a, s)."""


@dataclass(frozen=True)
class TargetVariance:
    """Irreducible error of the noise prediction, E Var(eps | x_t) per number; 1 is knowing nothing of the noise."""

    alpha_bars: tuple[float, ...]  # noise levels; near 1 there is little noise in x_t, near 0 little else
    vanilla: tuple[float, ...]  # with plain noise
    selected: tuple[float, ...]  # with the selector's noise, at most (module docstring)


@torch.no_grad()
def target_variance(
    select: Selector,
    x: Tensor,
    *,
    alpha_bars: Sequence[float] = ALPHA_BARS,
    draws: int = 4,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    step: int | None = None,
    generator: torch.Generator | None = None,
) -> TargetVariance:
    """Variance of the noise given x_t when the data are the samples of one batch (module docstring).

    The denoiser is chosen on half of the draws and judged on the others, then the reverse: choice costs no optimism.

    The selector is called `draws` times, an even number, on the whole batch x (B, ...), with condition, mask and step.
    The denoisers judged here do not see the condition and measure all numbers. Noise levels lie between 0 and 1.

    Raises:
        ValueError: For unusable x, condition, mask, alpha_bars or draws.
    """
    require_samples(x, condition, mask)
    require_levels(alpha_bars)
    if draws < 2 or draws % 2:
        raise ValueError(f"draws={draws}: needs an even number, half to choose the denoiser and half to judge it")
    noises = [select(x, condition=condition, mask=mask, step=step, generator=generator) for _ in range(draws)]
    data, noise = in_span(x.flatten(1).double(), torch.stack(noises).flatten(2).double())
    plain, dims = draw(noise, generator), x[0].numel()
    deviation = math.sqrt(2 * dims + 4 * float(data.square().sum(dim=1).mean()))
    plain_noise = draw(data.new_empty(SINKHORN_NOISES, data.shape[1]), generator)
    nearest = [nearest_ratio(data, dims, k) for k in CANDIDATES]
    assigned = [assigned_ratio(data, plain_noise, strength / deviation) for strength in STRENGTHS]
    ratios: list[LogRatio] = [lambda x_t, a, s: x_t.new_zeros(()), *nearest, *assigned]
    scales = [value / (1 - value) / dims for value in alpha_bars]  # from the clean sample's error to the noise's
    levels = list(zip(alpha_bars, scales, strict=True))
    vanilla = tuple(scale * plain_variance(data, plain, level) for level, scale in levels)
    selected = tuple(scale * least_error(data, noise, ratios, level) for level, scale in levels)
    return TargetVariance(tuple(alpha_bars), vanilla, selected)


def require_levels(alpha_bars: Sequence[float]) -> None:
    """Refuse noise levels at which nothing can be measured with a ValueError."""
    if not alpha_bars or not all(0 < value < 1 for value in alpha_bars):
        raise ValueError(f"alpha_bars={tuple(alpha_bars)}: needs noise levels above 0 and below 1")


def in_span(data: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of data (B, D) and noise (draws, B, D) in the span of the data if D > B, and the length of the rest.

    They keep all inner products with the data and all lengths, which is all that the denoisers measure.
    """
    if data.shape[1] <= len(data) + 1:
        return data, noise
    basis, coordinates = torch.linalg.qr(data.T)  # (D, B), (B, B)
    inside = noise @ basis
    rest = torch.linalg.vector_norm(noise - inside @ basis.T, dim=2, keepdim=True)
    return torch.cat([coordinates.T, data.new_zeros(len(data), 1)], dim=1), torch.cat([inside, rest], dim=2)


def plain_variance(data: Tensor, noise: Tensor, alpha_bar: float) -> float:
    """Mean posterior variance of the clean sample at x_t made of data (B, D) and plain noise (draws, B, D)."""
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    x_t = (a * data + s * noise).flatten(0, 1)  # (Q, D)
    w = _log_normal(x_t, data, a, s).softmax(dim=1)  # (Q, B)
    variance = w @ data.square().sum(dim=1) - (w @ data).square().sum(dim=1)
    return float(variance.clamp_min(0).mean())


def least_error(data: Tensor, noise: Tensor, ratios: Sequence[LogRatio], alpha_bar: float) -> float:
    """Mean squared error, about the clean sample, of the best of several denoisers, as `plain_variance`."""
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    x_t = (a * data + s * noise).flatten(0, 1)  # (Q, D)
    normal, truth = _log_normal(x_t, data, a, s), data.repeat(len(noise), 1)
    errors = []
    for log_ratio in ratios:
        estimate = (normal + log_ratio(x_t, a, s)).softmax(dim=1) @ data
        errors.append((estimate - truth).square().sum(dim=1))
    halves = torch.stack(errors).unflatten(1, (2, -1)).mean(dim=2)  # (denoisers, 2)
    first, second = halves.argmin(dim=0).tolist()
    return float((halves[first, 1] + halves[second, 0]) / 2)


def _log_normal(x_t: Tensor, data: Tensor, a: float, s: float) -> Tensor:
    """Log density of eps_j under N(0, I) (Q, B), up to what all j share."""
    return (2 * a * x_t @ data.T - a**2 * data.square().sum(dim=1)) / (2 * s**2)


def nearest_ratio(data: Tensor, dims: int, k: int) -> LogRatio:
    """The law of the nearest of k noises; its distribution function as `log_survival` has it."""
    norms = data.square().sum(dim=1)

    def log_ratio(x_t: Tensor, a: float, s: float) -> Tensor:
        # x_j - eps_j = ((a + s) x_j - x_t) / s
        distances = (a + s) ** 2 * norms - 2 * (a + s) * x_t @ data.T + x_t.square().sum(dim=1, keepdim=True)
        return (k - 1) * log_survival(distances.clamp_min(0) / s**2, dims, norms)

    return log_ratio


def log_survival(value: Tensor, degrees: int, noncentrality: Tensor) -> Tensor:
    """log(1 - F) of the noncentral chi-squared law, by Sankaran's normal approximation (Biometrika 50, 1963).

    Measured error of 1 - F: at most 0.0005 with 32 degrees, 0.015 with 2, 0.065 with 1 (noncentrality near 1).
    """
    n, c = degrees, noncentrality
    h = 1 - 2 / 3 * (n + c) * (n + 3 * c) / (n + 2 * c) ** 2
    p = (n + 2 * c) / (n + c) ** 2
    m = (h - 1) * (1 - 3 * h)
    mean = 1 + h * p * (h - 1 - (2 - h) * m * p / 2)
    deviation = h * (2 * p).sqrt() * (1 + m * p / 2)
    return torch.special.log_ndtr((mean - (value / (n + c)) ** h) / deviation)


def assigned_ratio(data: Tensor, noises: Tensor, beta: float) -> LogRatio:
    """Entropic optimal transport of plain noises (K, D) to the samples (B, D).

    The marginal of the noise is kept by r = B softmax_j(2 beta x_j . eps + log w_j), which psi amounts to, and the
    equal share of every sample by w, which phi does.
    """
    log_w = sinkhorn(2 * beta * noises @ data.T).log()

    def log_ratio(x_t: Tensor, a: float, s: float) -> Tensor:
        # x_i . eps_j = (x_i . x_t - a x_i . x_j) / s
        from_query = 2 * beta / s * x_t @ data.T + log_w  # (Q, B)
        from_sample = -2 * beta * a / s * data @ data.T  # (B, B)
        return from_query + from_sample.diagonal() - log_matmul_exp(from_query, from_sample)

    return log_ratio


def sinkhorn(logits: Tensor) -> Tensor:
    """Weights w (B,), mean 1, for which softmax_j(logits_kj + log w_j), logits (K, B), has equal sums over k."""
    kernel = (logits - logits.amax(dim=1, keepdim=True)).exp()
    w = logits.new_ones(logits.shape[1])
    for _ in range(SINKHORN_STEPS):
        w = 1 / (kernel.T @ (1 / (kernel @ w)))
        w = w / w.mean()
    return w


def log_matmul_exp(u: Tensor, v: Tensor) -> Tensor:
    """log(exp(u) @ exp(v)) for u (Q, B) and v (B, C), without a (Q, B, C) tensor.

    Where every term is below the smallest float64 the result is too large; a denoiser made of it is merely worse.
    """
    rows, columns = u.amax(dim=1, keepdim=True), v.amax(dim=0)
    product = (u - rows).exp() @ (v - columns).exp()
    return product.clamp_min(torch.finfo(product.dtype).tiny).log() + rows + columns
