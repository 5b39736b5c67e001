"""Semi-discrete coupling: the noise picks its sample, by potentials fitted once over the whole dataset.

Ordinary assignment pairs one batch at a time and so only approximates the transport between all data and the
Gaussian. Here every noise has exactly one sample of the dataset, its nearest after each sample's handicap:

    couple(e) = argmin_i cost(x_i, e) - phi_i,

and the handicaps phi make every sample equally likely (semi-discrete optimal transport; Genevay et al., 2016). It is a
batch sampler, not a selector: draw Gaussian noise, `couple(noise)` says which samples to train on with it.

Shape legend: N samples of the dataset, C <= N distinct ones, B noises, D numbers per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from immiscible_policy.noise.costs import DistanceName, check_fit, distances, precise
from immiscible_policy.noise.inputs import check
from immiscible_policy.noise.potentials import fit_potentials

SMOOTH_STEPS = 1000
"""Steps that fit a smooth function of the sample, from which the handicaps start."""
WORST = 0.5
"""An imbalance above this is a fit that failed."""


@dataclass(frozen=True, eq=False)
class Coupling:
    """The map from noises to samples of a dataset; samples that are equal share a cell and are dealt out in turn.

    Attributes:
        cells: Distinct samples (C, D); centred if the cost is `sqeuclidean`, to which a shift is nothing.
        potentials: Handicaps phi (C,).
        members: Numbers of all samples (N,), cell after cell.
        counts: Samples in each cell (C,).
        cost: `sqeuclidean` or `euclidean`.
    """

    cells: Tensor
    potentials: Tensor
    members: Tensor
    counts: Tensor
    cost: DistanceName = "sqeuclidean"

    @torch.no_grad()
    def __call__(self, noise: Tensor) -> Tensor:
        """Number of the sample (B,), int64, that each noise (B, ...) belongs to.

        Raises:
            ValueError: If the noise is not a floating-point batch of the samples' size.
        """
        check(noise, None, None)
        flat = noise.flatten(1).to(self.cells.dtype)
        if flat.shape[1] != self.cells.shape[1]:
            raise ValueError(
                f"noise has {flat.shape[1]} numbers per row; the coupled samples have {self.cells.shape[1]}"
            )
        cell = self.cell(flat)
        count = self.counts[cell]
        digits = (1000 * flat.double().sum(dim=1)).frac().abs()  # as good as random, yet a function of the noise
        turn = (digits * count).long().clamp(max=count - 1)
        return self.members[self.counts.cumsum(0)[cell] - count + turn]

    def cell(self, noise: Tensor) -> Tensor:
        """Number of the distinct sample (B,) that each noise (B, D) belongs to."""
        return (distances(noise, self.cells, None, self.cost) - self.potentials).argmin(dim=1)

    def imbalance(self, noises: int, generator: torch.Generator) -> float:
        """Total variation between how often samples are picked and equal shares, less what chance alone gives.

        0 for a perfect coupling; near 1 if almost all noises pick the same sample. Estimated from fresh noises.
        """
        size = len(self.members)
        picked = torch.zeros(size, device="cpu")
        for first in range(0, noises, 1024):
            noise = _noise(self.cells, min(1024, noises - first), generator)
            picked += torch.bincount(self(noise).cpu(), minlength=size)
        chance = torch.bincount(torch.randint(size, (noises,), generator=generator), minlength=size)
        share = noises / size
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
    """Fit the handicaps by stochastic ascent of the dual, sum_i p_i phi_i + E min_i (cost(x_i, e) - phi_i).

    Its gradient is sample i's share p_i minus the share of noises that pick it: what is picked too often gets a lower
    handicap. The second half of the iterates is averaged.

    Args:
        windows: Clean samples (N, ...), all that will be trained on.
        cost: `sqeuclidean` or `euclidean`.
        steps: Gradient steps.
        batch_size: Noises per step.
        generator: Source of randomness, on the CPU; by default one of its own, so that fits repeat.
        progress: Called with the number of steps done.

    Raises:
        ValueError: If windows are not finite floating-point samples, an option is out of range, or the fit failed.
    """
    check_fit(windows, cost, steps, batch_size)
    generator = generator or torch.Generator().manual_seed(0)
    couple = _cells(windows.detach().flatten(1).float(), cost, generator)
    phi, share = couple.potentials, couple.counts / couple.counts.sum()
    rate = _typical_gap(couple, generator) * (batch_size * share).clamp(max=1)
    average, last = torch.zeros_like(phi), steps - steps // 2
    for step in range(steps):
        noise = _noise(couple.cells, batch_size, generator)
        picked = torch.bincount(replace(couple, potentials=phi).cell(noise), minlength=len(phi))
        phi = phi - rate * (1 - 0.9 * step / steps) * (picked / (batch_size * share) - 1)
        if step >= steps - last:
            average += phi / last
        progress(step + 1)
    couple = replace(couple, potentials=average)
    imbalance = couple.imbalance(10_000, generator)
    if imbalance > WORST:
        raise ValueError(f"the coupling did not converge (imbalance {imbalance:.2f} of 1): raise steps, now {steps}")
    return couple


def _cells(x: Tensor, cost: DistanceName, generator: torch.Generator) -> Coupling:
    """The distinct samples of x (N, D), with handicaps that are a smooth function of the sample."""
    if cost == "sqeuclidean":
        x = x - x.double().mean(dim=0).float()
    cells, label, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
    cells = precise(cells)
    smooth = fit_potentials(x, cost=cost, steps=SMOOTH_STEPS, generator=generator)(cells)
    return Coupling(cells, smooth, label.argsort(stable=True), counts, cost)


def _typical_gap(couple: Coupling, generator: torch.Generator) -> float:
    """Median difference between a noise's best and second-best cell: the scale on which handicaps matter."""
    handicapped = distances(_noise(couple.cells, 256, generator), couple.cells, None, couple.cost) - couple.potentials
    best = handicapped.topk(min(2, len(couple.cells)), dim=1, largest=False).values
    return float((best[:, -1] - best[:, 0]).median())


def _noise(cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise (count, D) where and as precise as the cells are; drawn on the CPU."""
    return torch.randn(count, cells.shape[1], generator=generator).to(cells)
