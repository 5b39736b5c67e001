"""What each layer of a denoiser predicts: the clean sample x_0 that its output implies at every network call.

Shape legend: S layers (network calls, the noisiest first), N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.path import Path
from immiscible_policy.path.base import Network
from immiscible_policy.solver import Plan, solve


class Layers(NamedTuple):
    """What is measured of every layer; lists of S numbers, the noisiest layer first."""

    t: list[float]  # the time as the network is given it
    own: list[float]  # error of x_0 from real data noised by the model's own selector
    plain: list[float]  # the same from plain Gaussian noise
    final: list[float]  # distance of the predicted from the final sample, along sampling from plain noise
    frechet: list[float]  # squared Fréchet distance of the predicted samples' features to those of real data


@torch.no_grad()
def predicted_along_sampling(network: Network, path: Path, plan: Plan, noise: Tensor, limit: float) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict while start noises (N, ...) are denoised.

    The layers are the calls of the plan, whose solver adds no noise; clean numbers lie within the limit.
    """
    predicted: list[Tensor] = []

    def calls(i: int, x: Tensor) -> Tensor:
        return network(x, torch.full((len(x),), plan[i].t)).float()

    solve(calls, path, plan, noise[None], limit=limit, record=predicted)
    return torch.stack(predicted)


@torch.no_grad()
def predicted_from_data(network: Network, path: Path, plan: Plan, x: Tensor, noise: Tensor, limit: float) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict from real data x (N, ...) brought to their level by noise."""
    noised = [(layer, layer.alpha * x + layer.sigma * noise) for layer in plan]
    return torch.cat([predicted_along_sampling(network, path, (layer,), at, limit) for layer, at in noised])


def relative_error(predicted: Tensor, target: Tensor, spread: float) -> list[float]:
    """Root mean square error of each layer's predictions (S, N, ...) of target (N, ...), in units of the data's spread.

    The spread is the root mean square deviation of the data from its mean: whoever always predicts the mean scores 1.
    """
    return [float((layer - target).square().mean().sqrt() / spread) for layer in predicted]


class Batch(NamedTuple):
    """Real data, noises for it, all (N, ...), and the denoiser that sees them."""

    x: Tensor  # clean, as diffused
    own: Tensor  # noise that the model's own selector chose
    plain: Tensor  # Gaussian noise
    start: Tensor  # start noises of sampling
    network: Network  # its conditions bound


def measure_layers(
    batches: Iterable[Batch],
    path: Path,
    plan: Plan,
    limit: float,
    features: Callable[[Tensor], Tensor],
    reference: FeatureStatistics,
) -> Layers:
    """Measure every layer of a denoiser (see `predicted_along_sampling`); features (N, D) are of samples (N, ...)."""
    x, own, plain, sampled = [], [], [], []
    for batch in batches:
        x.append(batch.x)
        own.append(predicted_from_data(batch.network, path, plan, batch.x, batch.own, limit))
        plain.append(predicted_from_data(batch.network, path, plan, batch.x, batch.plain, limit))
        sampled.append(predicted_along_sampling(batch.network, path, plan, batch.start, limit))
    data, along = torch.cat(x), torch.cat(sampled, dim=1)
    spread = float((data - data.mean(dim=0)).square().mean().sqrt())
    return Layers(
        [step.t for step in plan],
        relative_error(torch.cat(own, dim=1), data, spread),
        relative_error(torch.cat(plain, dim=1), data, spread),
        relative_error(along, along[-1], spread),
        [frechet_distance(*feature_statistics(features(layer)), *reference) for layer in along],
    )
