"""Statistics of noise: how far it lies from its samples, and how far its law lies from N(0, I).

All of them are measured in float64. Each stands beside what plain noise would give: a sample of finite size is
never exactly Gaussian, so a value alone says nothing.

Shape legend: N samples, D numbers per sample, P clusters of n noises each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from immiscible_policy.noise.inputs import check

LEVEL = 0.95
"""Every range and interval of the audit holds plain noise with this probability."""
RIDGE = 0.01
"""Penalty of the regression behind `prior_shift`, per sample, on conditions of unit variance."""
CHUNK = 4096
"""Samples brought to float64 at once."""


def pair_distance(x: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """Euclidean distances (N,), float64, of samples (N, ...) to their noises: what immiscible diffusion shortens.

    The boolean mask broadcasts to x; only numbers where it is True count.

    Raises:
        ValueError: If the shapes differ.
    """
    if x.shape != noise.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and noise {tuple(noise.shape)}; pairs need equal shapes")
    difference = noise.double() - x.double()
    if mask is not None:
        difference = torch.where(mask, difference, 0.0)
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)


@dataclass(frozen=True)
class Moments:
    """Moments of noise (N, D); N(0, I) has 0, 1, 0, 0, D, then 0, 1, 1 as N grows.

    The first four are those of all numbers together (the kurtosis is the excess kurtosis), `squared_norm` is the mean
    squared Euclidean norm of a sample, the others are the extreme mean and variances among the D coordinates.
    """

    mean: float
    variance: float
    skewness: float
    kurtosis: float
    squared_norm: float
    largest_mean: float
    smallest_variance: float
    largest_variance: float


def moments(noise: Tensor) -> Moments:
    """Measure the moments of noise (N, ...), pooled over all numbers and per coordinate.

    Raises:
        ValueError: If there are fewer than 2 samples, a number is not finite, or all numbers are equal.
    """
    flat = _samples(noise, "noise")
    values = flat - flat.mean()
    squares = values.square()
    variance = float(squares.mean())
    if variance == 0:
        raise ValueError(f"all numbers of the noise are {float(flat[0, 0])}; skewness and kurtosis need variance")
    coordinates = flat.var(dim=0)
    return Moments(
        mean=float(flat.mean()),
        variance=variance,
        skewness=float((values * squares).mean()) / variance**1.5,
        kurtosis=float(squares.square().mean()) / variance**2 - 3,
        squared_norm=float(flat.square().sum(dim=1).mean()),
        largest_mean=float(flat.mean(dim=0).abs().max()),
        smallest_variance=float(coordinates.min()),
        largest_variance=float(coordinates.max()),
    )


def plain_ranges(samples: int, dims: int) -> dict[str, tuple[float, float]]:
    """Where each of the `Moments` of N(0, I) noise (samples, dims) falls with probability 95%.

    Skewness and kurtosis by their large-sample normal laws, the rest exactly. The extremes over coordinates are
    Sidak's: all D coordinates stay inside together with probability 95%.
    """
    total = samples * dims
    z = stats.norm.ppf((1 + LEVEL) / 2)
    alone = LEVEL ** (1 / dims)
    far = float(stats.norm.ppf((1 + alone) / 2)) / math.sqrt(samples)
    ends = stats.chi2.ppf([(1 - alone) / 2, (1 + alone) / 2], samples - 1) / (samples - 1)
    lengths = stats.chi2.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], total)
    variance = stats.chi2.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], total - 1) / total
    ranges = {
        "mean": (-z / math.sqrt(total), z / math.sqrt(total)),
        "variance": tuple(variance),
        "skewness": (-z * math.sqrt(6 / total), z * math.sqrt(6 / total)),
        "kurtosis": (-z * math.sqrt(24 / total), z * math.sqrt(24 / total)),
        "squared_norm": tuple(lengths / samples),
        "largest_mean": (0.0, far),
        "smallest_variance": tuple(ends),
        "largest_variance": tuple(ends),
    }
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}


@dataclass(frozen=True)
class KS:
    """Kolmogorov-Smirnov test of numbers against N(0, 1)."""

    statistic: float  # largest gap between the empirical and the normal distribution function
    pvalue: float  # probability of a gap this large or larger from as many independent normal numbers
    critical: float  # the gap that as many independent normal numbers exceed in 5% of cases


def ks_normal(values: Tensor) -> KS:
    """Test all numbers of a tensor, taken together, against N(0, 1).

    Raises:
        ValueError: If there is none or one is not finite.
    """
    flat = values.detach().flatten().double().cpu()
    if flat.numel() == 0 or not torch.isfinite(flat).all():
        raise ValueError(f"values of shape {tuple(values.shape)} are empty or hold NaN or infinity; nothing to test")
    test = stats.kstest(flat.numpy(), "norm")
    critical = stats.kstwo.ppf(LEVEL, flat.numel())
    return KS(float(test.statistic), float(test.pvalue), float(critical))


@dataclass(frozen=True)
class GaussianKL:
    """KL divergence, in nats, of the Gaussian fitted to samples from N(0, I), beside what fitting alone costs."""

    kl: float  # divergence of the fitted Gaussian
    floor: float  # expectation of `kl` for samples that are exactly N(0, I)
    excess: float  # kl - floor: the only part that is about the noise
    deviation: float  # standard deviation of `kl` for such samples, the scale on which the excess is to be read


def gaussian_kl(samples: Tensor) -> GaussianKL:
    """KL( N(m, S) || N(0, I) ) of the fitted mean m and maximum-likelihood covariance S (divisor N).

    With that divisor tr S + |m|^2 is the mean squared norm, so KL = (mean squared norm - D - log det S) / 2. Samples
    (N, ...) must be more than the D numbers of each, or S is singular.

    Raises:
        ValueError: If there are too few samples or a number is not finite.
    """
    flat = samples.detach().flatten(1)
    count, dims = flat.shape
    floor, deviation = kl_floor(count, dims)
    mean = flat.mean(dim=0, dtype=torch.float64)
    square = torch.zeros(dims, dims, dtype=torch.float64, device=flat.device)
    for chunk in flat.split(CHUNK):
        square += chunk.double().T @ chunk.double()
    second = square / count
    if not torch.isfinite(second).all():
        raise ValueError("samples contain NaN or infinity; clean them before fitting a Gaussian")
    logdet = float(torch.linalg.slogdet(second - torch.outer(mean, mean)).logabsdet)
    kl = (float(second.trace()) - dims - logdet) / 2
    return GaussianKL(kl, floor, kl - floor, deviation)


def kl_floor(samples: int, dims: int) -> tuple[float, float]:
    """Exact expectation and standard deviation of `gaussian_kl` for samples of N(0, I).

    N S is Wishart with N - 1 degrees of freedom, so log det S has the mean and variance

        sum_{i=1..D} digamma((N - i) / 2) + D log(2 / N),    sum_{i=1..D} trigamma((N - i) / 2);

    the mean squared norm has mean D, variance 2 D / N, and the covariance 2 D / N with log det S.

    Raises:
        ValueError: If samples <= dims.
    """
    if samples <= dims:
        raise ValueError(f"{samples} samples of {dims} numbers: a Gaussian fit needs more samples than numbers")
    halves = (samples - np.arange(1, dims + 1)) / 2
    mean = (dims * math.log(samples / 2) - special.digamma(halves).sum()) / 2
    variance = (special.polygamma(1, halves).sum() - 2 * dims / samples) / 4
    return float(mean), math.sqrt(variance)


@dataclass(frozen=True)
class ClusterDistances:
    """Distances between the centroids of noise clusters, over all pairs of clusters."""

    mean: float  # mean Euclidean distance
    std: float  # standard deviation over the pairs; 0 with one pair
    floor: float  # sqrt(2 D / n): root mean square distance of the centroids of n plain noises each
    corrected: float  # root mean square distance of the true means, without what n noises of such variances add


def cluster_distances(noise: Tensor | Iterable[Tensor]) -> ClusterDistances:
    """How far apart the noises chosen for different samples lie (2505.18521, distance between noise clusters).

    Args:
        noise: n noises for each of P samples (P, n, ...); or an iterable of clusters (n, ...), consumed one by one.

    Raises:
        ValueError: If there are fewer than 2 clusters or 2 noises in one, or the clusters differ in shape.
    """
    centroids, sampling, shapes = [], [], set()
    for cluster in noise:
        flat = _samples(cluster, "a cluster")
        shapes.add(tuple(flat.shape))
        centroids.append(flat.mean(dim=0))
        sampling.append(float(flat.var(dim=0).sum()) / len(flat))
    if len(centroids) < 2 or len(shapes) != 1:
        raise ValueError(f"{len(centroids)} clusters of shapes {sorted(shapes)}: needs 2 or more of one shape")
    ((count, dims),) = shapes
    distances = torch.nn.functional.pdist(torch.stack(centroids))
    squared = float(distances.square().mean()) - 2 * float(np.mean(sampling))
    return ClusterDistances(
        mean=float(distances.mean()),
        std=float(distances.std(correction=0)),
        floor=math.sqrt(2 * dims / count),
        corrected=math.sqrt(max(0.0, squared)),
    )


@dataclass(frozen=True)
class Correlation:
    """Correlation between samples and their noises; 0 for plain noise.

    A policy trained under a strong one learns to follow the noise it starts from instead of its observation.
    """

    coordinates: float  # mean over coordinates d of corr(x_d, eps_d)
    row_means: float  # corr of each sample's mean with its noise's mean: a shift common to all numbers


def correlation(x: Tensor, noise: Tensor) -> Correlation:
    """Correlate samples (N, ...) with their noises; what does not vary over the samples counts as uncorrelated.

    Raises:
        ValueError: If the shapes differ, there are fewer than 2 samples, or a number is not finite.
    """
    if x.shape != noise.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and noise {tuple(noise.shape)}; pairs need equal shapes")
    a, b = _samples(x, "x"), _samples(noise, "noise")
    return Correlation(float(_pearson(a, b).mean()), float(_pearson(a.mean(1, True), b.mean(1, True))))


def prior_shift(condition: Tensor, noise: Tensor, group: Tensor | None = None) -> float:
    """Root mean square length of the mean noise that a condition meets in training, at least; 0 for plain noise.

    Sampling starts from N(0, I) whatever the condition, so this is how far training and sampling part (C2OT, arXiv
    2503.10636, calls it the skewed prior). Two ridge regressions, each fitted on one half, predict the mean noise from
    the condition. Their errors are independent, so the mean product of the predictions is free of them: it is the
    mean squared length of that part of the mean noise which is linear in the condition. 0 where it is negative.
    Conditions (N, ...) belong to the noise (N, ...) that was selected under them. Pairs of one group (N,), such as the
    sample, fall into the same half, for they have the same errors. Without groups, or with one, each pair is its own.

    Raises:
        ValueError: If the rows differ in number, are fewer than 4, or hold NaN or infinity.
    """
    if len(condition) != len(noise) or len(noise) < 4:
        raise ValueError(f"{len(condition)} conditions and {len(noise)} noises; needs as many of each, 4 or more")
    c, e = _samples(condition.reshape(len(condition), -1).double(), "condition"), _samples(noise, "noise")
    varies = c.std(dim=0) > 0
    c = (c - c.mean(dim=0))[:, varies] / c.std(dim=0)[varies]
    c = torch.cat([c.new_ones(len(c), 1), c], dim=1)
    predictions = []
    second = torch.arange(len(c), device=c.device) >= len(c) // 2
    if group is not None and (groups := len(group.unique())) > 1:
        dealt = torch.randperm(groups, generator=torch.Generator().manual_seed(0)) % 2 == 1
        second = dealt.to(c.device)[group.to(c.device).unique(return_inverse=True)[1]]
    for half in (~second, second):
        rows = c[half]
        penalty = RIDGE * len(rows) * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
        predictions.append(c @ torch.linalg.solve(rows.T @ rows + penalty, rows.T @ e[half]))
    return math.sqrt(max(0.0, float((predictions[0] * predictions[1]).sum(dim=1).mean())))


def require_samples(x: Tensor, condition: Tensor | None, mask: Tensor | None) -> None:
    """Refuse samples that cannot be audited.

    Raises:
        ValueError: As every selector, and if there are fewer than 2 samples or one holds NaN or infinity.
    """
    check(x, condition, mask)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} sample; an audit needs 2 or more")
    finite = torch.isfinite(x.flatten(1)).all(dim=1)
    if not finite.all():
        raise ValueError(f"x contains NaN or infinity in sample {int((~finite).nonzero()[0])}; clean the data first")


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the columns of a and b (N, D)."""
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    scale = torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0)
    return torch.where(scale > 0, (a * b).sum(dim=0) / torch.where(scale > 0, scale, 1.0), 0.0)


def _samples(values: Tensor, name: str) -> Tensor:
    """Values as finite float64 rows (N, D), N >= 2."""
    if values.ndim < 2 or len(values) < 2 or values.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; needs (N, ...) with 2 samples or more")
    flat = values.detach().flatten(1).double()
    if not torch.isfinite(flat).all():
        raise ValueError(f"{name} contains NaN or infinity; clean it before measuring")
    return flat
