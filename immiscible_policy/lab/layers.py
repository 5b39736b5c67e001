"""What each layer of a denoiser predicts: the clean sample x_0 that its noise prediction implies at every step.

    x_0(x_t, t) = (x_t - sqrt(1 - a_t) eps(x_t, t)) / sqrt(a_t),   a_t = alpha-bar, clipped as the sampler clips it

Shape legend: S layers (sampling steps, the noisiest first), N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance

Predict = Callable[[Tensor, Tensor], Tensor]
"""Predicts noise (N, ...) from x_t (N, ...) and diffusion steps (N,)."""


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
def predicted_along_sampling(predict: Predict, scheduler: DDIMScheduler, noise: Tensor) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict while start noises (N, ...) are denoised, eta = 0.

    The last of them are the samples that denoising ends with.
    """
    x, predicted = noise, []
    for t in scheduler.timesteps:
        x, clean = scheduler.step(predict(x, t.expand(len(x))), t, x, eta=0.0, return_dict=False)
        predicted.append(clean)
    return torch.stack(predicted)


@torch.no_grad()
def predicted_from_data(predict: Predict, scheduler: DDIMScheduler, x: Tensor, noise: Tensor) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict from real data x (N, ...) brought to their level by noise."""
    predicted = []
    for t in scheduler.timesteps:
        noisy = scheduler.add_noise(x, noise, t.expand(len(x)))
        step = scheduler.step(predict(noisy, t.expand(len(x))), t, noisy, eta=0.0, return_dict=False)
        predicted.append(step[1])
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
        predict: The denoiser, its conditions bound.
    """

    x: Tensor
    own: Tensor
    plain: Tensor
    start: Tensor
    predict: Predict


def measure_layers(
    batches: Iterable[Batch],
    scheduler: DDIMScheduler,
    features: Callable[[Tensor], Tensor],
    reference: FeatureStatistics,
) -> Layers:
    """Measure every layer of a denoiser.

    Args:
        batches: Real data in batches.
        scheduler: Its timesteps are the layers.
        features: Features (N, D) of samples (N, ...).
        reference: The real data's features.
    """
    x, own, plain, sampled = [], [], [], []
    for batch in batches:
        x.append(batch.x)
        own.append(predicted_from_data(batch.predict, scheduler, batch.x, batch.own))
        plain.append(predicted_from_data(batch.predict, scheduler, batch.x, batch.plain))
        sampled.append(predicted_along_sampling(batch.predict, scheduler, batch.start))
    data, along = torch.cat(x), torch.cat(sampled, dim=1)
    spread = data_spread(data)
    return Layers(
        scheduler.timesteps.tolist(),
        relative_error(torch.cat(own, dim=1), data, spread),
        relative_error(torch.cat(plain, dim=1), data, spread),
        relative_error(along, along[-1], spread),
        layer_distances(along, features, reference),
    )
