"""What assignment minimises: distances between samples and noises, and between their conditions.

Shape legend: B samples, M noises (M >= B), D numbers per sample, C numbers per condition.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

DistanceName = Literal["euclidean", "sqeuclidean"]
ConditionName = Literal["cosine", "sqeuclidean"]
SMALLEST_STD = 1e-6
FAR = 64.0
"""Samples of a root mean square above this, or below its inverse, are measured in float64: in float32 the noise's
length or the sample's would drown the difference between distances."""


def check_distance(cost: str) -> None:
    """Refuse an unknown distance with a ValueError."""
    if cost not in ("euclidean", "sqeuclidean"):
        raise ValueError(f"cost={cost}: choose euclidean or sqeuclidean")


def distances(x: Tensor, noise: Tensor, mask: Tensor | None, cost: DistanceName) -> Tensor:
    """Distances (B, M) between samples (B, D) and noises (M, D) by one matrix product; never materialises (B, M, D).

    The mask (B, D) says which numbers of each sample count; x is zero where it is False.
    """
    with torch.autocast(x.device.type, enabled=False):  # half precision would pair wrongly
        lengths = noise.square()
        noise_term = lengths.sum(dim=1) if mask is None else mask.to(x.dtype) @ lengths.T
        squared = torch.addmm(x.square().sum(dim=1, keepdim=True) + noise_term, x, noise.T, alpha=-2).clamp_min_(0)
    return squared.sqrt_() if cost == "euclidean" else squared


def precise(x: Tensor) -> Tensor:
    """Samples (B, D) in a precision in which their distances to noise can be told apart; waits for the device."""
    rms = float(x.square().mean().sqrt())
    return x.double() if rms > FAR or 0 < rms < 1 / FAR else x


def standardize(x: Tensor, mask: Tensor | None) -> Tensor:
    """Bring each number to mean 0 and standard deviation 1 over the batch (Immiscible Diffusion Policy 2026).

    Samples (B, D) are zero where masked out, before and after; deviations below 1e-6 count as 1e-6.
    """
    weight = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    count = weight.sum(dim=0).clamp_min(1)
    mean = x.sum(dim=0) / count
    centred = (x - mean) * weight
    std = (centred.square().sum(dim=0) / count).sqrt().clamp_min(SMALLEST_STD)
    return centred / std


def condition_distances(condition: Tensor, cost: ConditionName) -> Tensor:
    """Distances (B, B) between continuous conditions (B, C): 1 - cosine, or squared Euclidean (C2OT, section 4.2)."""
    with torch.autocast(condition.device.type, enabled=False):
        if cost == "cosine":
            unit = torch.nn.functional.normalize(condition, dim=1)
            apart = (1 - unit @ unit.T).clamp_min_(0)
        else:
            apart = distances(condition, condition, None, "sqeuclidean")
    same = condition.unique(dim=0, return_inverse=True)[1]
    return apart.masked_fill_(same[:, None] == same, 0)  # equal conditions exactly, whatever rounding says


def condition_weight(costs: Tensor, conditions: Tensor, ratio: float) -> Tensor:
    """The smallest weight w at which few other noises are cheaper than a sample's own (C2OT's adaptive weight).

    Of the B (B - 1) pairs of a sample with another's noise, about the share `ratio` has costs_ij + w conditions_ij <
    costs_ii. Each does so up to w_ij = (costs_ii - costs_ij) / conditions_ij, so w is an order statistic of these,
    where the published code searches; that code also counts the B own pairs, so that nothing moves at B <= 1 / ratio.
    Distances between equal conditions (B, B) are exactly 0.

    Returns:
        The weight, a scalar >= 0. If noises of equal conditions alone exceed the share, the one that admits no others.
    """
    gain = costs.diagonal()[:, None] - costs
    differ = conditions > 0
    always = torch.where(gain > 0, torch.inf, -torch.inf)
    limits = torch.where(differ, gain / torch.where(differ, conditions, 1.0), always)
    others = ~torch.eye(len(costs), dtype=torch.bool, device=costs.device)
    ordered = limits[others].sort(descending=True).values
    allowed = min(round(ratio * len(ordered)), len(ordered) - 1)
    finite = ordered[ordered.isfinite()]
    if not len(finite):
        return costs.new_zeros(())
    return ordered[allowed].clamp(max=finite[0]).clamp_min(0)
