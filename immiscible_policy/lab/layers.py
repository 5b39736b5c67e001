"""What each layer of a denoiser predicts: the clean sample that its output implies at every step of a solver.

Shape legend: S layers (network calls of a solver, the noisiest first), N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.path import Path
from immiscible_policy.path.base import Network
from immiscible_policy.solver import Plan, Solver, solve


class Denoising(NamedTuple):
    """A deterministic way from noise to data.

    Attributes:
        path: What the network learned.
        plan: The solver's calls: the layers.
        limit: Largest magnitude of a clean number.
    """

    path: Path
    plan: Plan
    limit: float


def denoising(path: Path, steps: int, limit: float) -> Denoising:
    """The default solver of a path, which adds no noise."""
    return Denoising(path, Solver(path.solvers[0], steps).plan(path), limit)


class Layers(NamedTuple):
    """What is measured of every layer; lists of S numbers, the noisiest layer first.

    Attributes:
        t: Diffusion step.
        own: Error of x_0 from real data noised by the model's own selector.
        plain: The same from plain Gaussian noise.
        final: Distance of the predicted from the final sample, along sampling from plain noise.
        frechet: Squared Fréchet distance of the predicted samples' features to those of real data.
    """

    t: list[int]
    own: list[float]
    plain: list[float]
    final: list[float]
    frechet: list[float]


@torch.no_grad()
def predicted_along_sampling(network: Network, way: Denoising, noise: Tensor) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict from start noises (N, ...) to the end.

    The last of them are the samples that denoising ends with.
    """
    predicted: list[Tensor] = []

    def call(i: int, x: Tensor) -> Tensor:
        return network(x, torch.full((len(x),), way.plan[i].t))

    solve(call, way.path, way.plan, noise[None], limit=way.limit, record=predicted)
    return torch.stack(predicted)


@torch.no_grad()
def predicted_from_data(network: Network, way: Denoising, x: Tensor, noise: Tensor) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict from real data x (N, ...) brought to their level by noise."""
    predicted = []
    for step in way.plan:
        noisy = step.alpha * x + step.sigma * noise
        output = network(noisy, torch.full((len(x),), step.t)).float()
        predicted.append(way.path.split(output, noisy, step.alpha, step.sigma).clean.clamp(-way.limit, way.limit))
    return torch.stack(predicted)


def relative_error(predicted: Tensor, target: Tensor, spread: float) -> list[float]:
    """Root mean square error of each layer's predictions (S, N, ...) of target (N, ...), in units of the data's spread.

    Args:
        predicted: Predicted samples.
        target: What they should be.
        spread: Root mean square deviation of the data from its mean: whoever always predicts the mean scores 1.
    """
    return [float((layer - target).square().mean().sqrt() / spread) for layer in predicted]


def data_spread(x: Tensor) -> float:
    """Root mean square deviation of samples x (N, ...) from their mean sample."""
    return float((x - x.mean(dim=0)).square().mean().sqrt())


def layer_distances(
    predicted: Tensor, features: Callable[[Tensor], Tensor], reference: FeatureStatistics
) -> list[float]:
    """Squared Fréchet distance of each layer's predictions (S, N, ...) to real data.

    Args:
        predicted: Predicted samples.
        features: Features (N, D) of samples (N, ...).
        reference: The real data's features.
    """
    return [frechet_distance(*feature_statistics(features(layer)), *reference) for layer in predicted]


class Batch(NamedTuple):
    """Real data, noises for it, and the denoiser that sees them.

    Attributes:
        x: Clean samples (N, ...), as diffused.
        own: Noise that the model's own selector chose for them (N, ...).
        plain: Gaussian noise (N, ...).
        start: Start noises of sampling (N, ...).
        network: The network, its conditions bound.
    """

    x: Tensor
    own: Tensor
    plain: Tensor
    start: Tensor
    network: Network


def measure_layers(
    batches: Iterable[Batch],
    way: Denoising,
    features: Callable[[Tensor], Tensor],
    reference: FeatureStatistics,
) -> Layers:
    """Measure every layer of a denoiser.

    Args:
        batches: Real data in batches.
        way: Its calls are the layers.
        features: Features (N, D) of samples (N, ...).
        reference: The real data's features.
    """
    x, own, plain, sampled = [], [], [], []
    for batch in batches:
        x.append(batch.x)
        own.append(predicted_from_data(batch.network, way, batch.x, batch.own))
        plain.append(predicted_from_data(batch.network, way, batch.x, batch.plain))
        sampled.append(predicted_along_sampling(batch.network, way, batch.start))
    data, along = torch.cat(x), torch.cat(sampled, dim=1)
    spread = data_spread(data)
    return Layers(
        [round(step.t) for step in way.plan],
        relative_error(torch.cat(own, dim=1), data, spread),
        relative_error(torch.cat(plain, dim=1), data, spread),
        relative_error(along, along[-1], spread),
        layer_distances(along, features, reference),
    )
