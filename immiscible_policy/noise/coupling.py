"""Semi-discrete coupling: the noise picks its sample, by potentials fitted once over the whole dataset.

Ordinary assignment pairs one batch at a time and so only approximates the transport between all data and the
Gaussian. Here every noise has exactly one sample of the dataset, its nearest after each sample's handicap:

    couple(e) = argmin_i cost(x_i, e) - phi_i,

and the handicaps phi make every sample equally likely (semi-discrete optimal transport; Genevay et al., 2016). It is a
batch sampler, not a selector: draw Gaussian noise, `couple(noise)` says which samples to train on with it.

Shape legend: N samples of the dataset, B noises, D numbers per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.costs import DistanceName, distances
from immiscible_policy.noise.inputs import check
from immiscible_policy.noise.potentials import fit_potentials

SMOOTH_STEPS = 1000
"""Steps that fit a smooth function of the sample, from which the handicaps start."""


@dataclass(frozen=True, eq=False)
class Coupling:
    """The map from noises to samples of a dataset.

    Attributes:
        x: Samples (N, D).
        potentials: Handicaps phi (N,).
        cost: `sqeuclidean` or `euclidean`.
    """

    x: Tensor
    potentials: Tensor
    cost: DistanceName = "sqeuclidean"

    @torch.no_grad()
    def __call__(self, noise: Tensor) -> Tensor:
        """Number of the sample (B,), int64, that each noise (B, ...) belongs to.

        Raises:
            ValueError: If the noise is not a floating-point batch of the samples' size.
        """
        check(noise, None, None)
        flat = noise.flatten(1).to(self.x.dtype)
        if flat.shape[1] != self.x.shape[1]:
            raise ValueError(f"noise has {flat.shape[1]} numbers per row; the coupled samples have {self.x.shape[1]}")
        return (distances(flat, self.x, None, self.cost) - self.potentials).argmin(dim=1)

    def to(self, device: torch.device | str) -> Coupling:
        """Move to a device."""
        return Coupling(self.x.to(device), self.potentials.to(device), self.cost)

    def imbalance(self, noises: int, generator: torch.Generator) -> float:
        """Total variation between how often samples are picked and equal shares, less what chance alone gives.

        0 for a perfect coupling; 1 if almost all noises pick the same sample. Estimated from so many fresh noises.
        """
        picked = torch.zeros(len(self.x), device="cpu")
        for first in range(0, noises, 1024):
            count = min(1024, noises - first)
            noise = torch.randn(count, self.x.shape[1], generator=generator).to(self.x.device)
            picked += torch.bincount(self(noise).cpu(), minlength=len(self.x))
        chance = torch.bincount(torch.randint(len(self.x), (noises,), generator=generator), minlength=len(self.x))
        share = noises / len(self.x)
        return float(((picked - share).abs().sum() - (chance - share).abs().sum()) / (2 * noises))


def fit_coupling(
    windows: Tensor,
    *,
    cost: DistanceName = "sqeuclidean",
    steps: int = 1000,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Coupling:
    """Fit the handicaps by stochastic ascent of the semi-discrete dual, mean_i phi_i + E min_i (cost(x_i, e) - phi_i).

    Its gradient is 1/N minus the share of noises that pick sample i: samples picked too often get a lower handicap.

    Args:
        windows: Clean samples (N, ...), all that will be trained on.
        cost: `sqeuclidean` or `euclidean`.
        steps: Gradient steps.
        batch_size: Noises per step.
        generator: Source of randomness, on the CPU; by default one of its own, so that fits repeat.
        progress: Called with the number of steps done.

    Raises:
        ValueError: If windows are not finite floating-point samples, or an option is out of range.
    """
    generator = generator or torch.Generator().manual_seed(0)
    smooth = fit_potentials(windows, cost=cost, steps=SMOOTH_STEPS, generator=generator)  # also checks the arguments
    x = windows.detach().flatten(1).float()
    phi = smooth(x)
    rate = _typical_gap(x, phi, cost, generator) * min(1.0, batch_size / len(x))
    average = torch.zeros_like(phi)
    last = max(1, steps // 2)
    for step in range(steps):
        noise = torch.randn(batch_size, x.shape[1], generator=generator).to(x.device)
        picked = torch.bincount(Coupling(x, phi, cost)(noise), minlength=len(x))
        excess = picked * (len(x) / batch_size) - 1  # 0 on average when all are picked equally often
        phi = phi - rate * (1 - 0.9 * step / steps) * excess
        if step >= steps - last:
            average += phi / last
        progress(step + 1)
    return Coupling(x, average, cost)


def _typical_gap(x: Tensor, phi: Tensor, cost: DistanceName, generator: torch.Generator) -> float:
    """Median difference between a noise's best and second-best sample: the scale on which handicaps matter."""
    noise = torch.randn(256, x.shape[1], generator=generator).to(x.device)
    best = (distances(noise, x, None, cost) - phi).topk(min(2, len(x)), dim=1, largest=False).values
    return float((best[:, -1] - best[:, 0]).median())
