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


def distances(x: Tensor, noise: Tensor, mask: Tensor | None, cost: DistanceName) -> Tensor:
    """Distances (B, M) between samples and noises by one matrix product; never materialises (B, M, D).

    Args:
        x: Samples (B, D), zero where masked out.
        noise: Noises (M, D).
        mask: Numbers of each sample that count (B, D), or None for all.
        cost: `euclidean` or `sqeuclidean`.
    """
    with torch.autocast(x.device.type, enabled=False):  # half precision would pair wrongly
        lengths = noise.square()
        noise_term = lengths.sum(dim=1) if mask is None else mask.to(x.dtype) @ lengths.T
        squared = torch.addmm(x.square().sum(dim=1, keepdim=True) + noise_term, x, noise.T, alpha=-2).clamp_min_(0)
    return squared.sqrt_() if cost == "euclidean" else squared


def standardize(x: Tensor, mask: Tensor | None) -> Tensor:
    """Bring each number to mean 0 and standard deviation 1 over the batch (Immiscible Diffusion Policy 2026).

    Args:
        x: Samples (B, D), zero where masked out.
        mask: Numbers that count (B, D), or None for all.

    Returns:
        Standardised samples (B, D), zero where masked out; deviations below 1e-6 count as 1e-6.
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
    return apart.fill_diagonal_(0)  # exactly, whatever rounding says


def condition_weight(costs: Tensor, conditions: Tensor, ratio: float) -> Tensor:
    """The smallest weight w at which few other noises are as good as a sample's own (C2OT's adaptive weight).

    Of all B x B pairs, the share with costs_ij + w conditions_ij <= costs_ii is at most `ratio`. Each pair meets the
    inequality up to w_ij = (costs_ii - costs_ij) / conditions_ij, so w is an order statistic of these; no search.

    Args:
        costs: Between samples and noises (B, B).
        conditions: Between conditions (B, B).
        ratio: Target share, 0 to 1.

    Returns:
        The weight, a scalar >= 0.
    """
    gain = costs.diagonal()[:, None] - costs
    far = conditions > torch.finfo(conditions.dtype).eps
    limits = torch.where(far, gain / torch.where(far, conditions, 1.0), torch.where(gain >= 0, torch.inf, -torch.inf))
    allowed = max(1, int(ratio * limits.numel()))
    ordered = limits.flatten().sort(descending=True).values
    finite = ordered[ordered.isfinite()]
    weight = ordered[allowed - 1]
    return (weight if weight.isfinite() or not len(finite) else finite[0]).nan_to_num(posinf=0.0).clamp_min(0)
