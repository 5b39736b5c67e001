"""Assignment: pair a batch with its noises at the least total cost.

An assignment is a cost, a pool of noises and a schedule; `linear`, `idp26` and `c2ot` are presets of it.

Shape legend: B samples, M = pool * B noises, D numbers per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from immiscible_policy.noise.costs import (
    ConditionName,
    DistanceName,
    check_distance,
    condition_distances,
    condition_weight,
    distances,
    precise,
    standardize,
)
from immiscible_policy.noise.inputs import check, draw, flatten, is_number, is_whole, require_finite
from immiscible_policy.noise.pairing import solve
from immiscible_policy.noise.potentials import Potentials, fit_potentials
from immiscible_policy.noise.schedule import Schedule, spread

LARGEST_POOL = 64


@dataclass(frozen=True)
class ConditionCost:
    """What it costs to give a sample the noise of another one whose condition differs (C2OT).

    Discrete conditions (integers, booleans) never mix; continuous ones cost their distance times a weight.

    Raises:
        ValueError: If a number is out of range or the cost is unknown.
    """

    weight: float | None = None  # 0 or more, `inf`: pairs of equal conditions only; None: from `ratio`, batch by batch
    ratio: float = 0.01  # share of the other samples' noises that may still be cheaper than a sample's own
    cost: ConditionName = "cosine"  # `cosine` (the paper's) or `sqeuclidean`

    def __post_init__(self) -> None:
        if self.weight is not None and not (is_number(self.weight) and self.weight >= 0):
            raise ValueError(f"weight={self.weight}: needs a number, 0 or more (inf pairs equal conditions only)")
        if not is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio}: needs a share above 0, at most 1")
        if self.cost not in ("cosine", "sqeuclidean"):
            raise ValueError(f"condition_cost={self.cost}: choose cosine or sqeuclidean")


@dataclass(frozen=True)
class Assignment:
    """The pairing of a batch with its noises that has the least total cost.

    With a pool of 1 the noise of the batch stays exactly Gaussian: it is `torch.randn(x.shape, generator=g)`,
    reordered. A larger pool gets closer to the samples and leaves the farthest noises unused. While the schedule's
    strength s is below 1, round(s * B) samples, evenly spread over the batch, are paired and the others keep
    vanilla noise.

    Raises:
        ValueError: If a name is unknown, or the pool is out of range.
    """

    cost: DistanceName = "euclidean"  # the papers'; `sqeuclidean` (usual in optimal transport) gives other pairs
    standardized: bool = False  # whether distances are measured to the samples standardised over the batch
    conditions: ConditionCost | None = None  # what differing conditions cost, or None if they cost nothing
    pool: int = 1  # noises drawn per sample
    potentials: Potentials | None = None  # from `fit_potentials`; the same cost in less time
    schedule: Schedule = Schedule()  # when to pair

    def __post_init__(self) -> None:
        check_distance(self.cost)
        if not is_whole(self.pool) or not 1 <= self.pool <= LARGEST_POOL:
            raise ValueError(f"pool={self.pool}: needs a whole number of noises per sample, 1 to {LARGEST_POOL}")
        if self.potentials is not None and not isinstance(self.potentials, Potentials):
            raise ValueError(f"potentials={self.potentials!r}: needs what fit_potentials returns, or None")

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise for x (B, ...) and give each sample the noise that the optimal assignment pairs it with."""
        check(x, condition, mask)
        if self.conditions is not None and condition is None:
            raise ValueError("condition is missing: this assignment needs one row per sample, select(x, condition=c)")
        noise = draw(x.new_empty(self.pool * len(x), *x.shape[1:]), generator)  # (M, ...)
        flat, counts = flatten(x, mask)
        norms = torch.linalg.vector_norm(flat, dim=1)
        paired = round(self.schedule.strength(step) * len(x))
        if paired < 2 and self.pool == 1 or paired == 0:
            return require_finite(x, noise[: len(x)], norms)
        require_finite(x, noise, norms.cpu())  # the solver waits for the device anyway
        rows = slice(None) if paired == len(x) else spread(paired, len(x), x.device)
        pooled = noise.unflatten(0, (self.pool, len(x)))[:, rows].flatten(0, 1)  # (pool * paired, ...)
        counts = None if counts is None else counts[rows]
        condition = None if condition is None else condition[rows]
        choice = self.pair(flat[rows], pooled.flatten(1).to(flat.dtype), counts, condition)
        chosen = pooled[choice.to(noise.device)]
        if paired == len(x):
            return chosen
        result = noise[: len(x)].clone()
        result[rows] = chosen
        return result

    def fitted(self, x: Tensor) -> Assignment:
        """This assignment with potentials for samples x (N, ...), unless conditions decide which pairs are cheap."""
        if self.conditions is not None:
            return self
        target = standardize(x.flatten(1), None) if self.standardized else x
        return replace(self, potentials=fit_potentials(target, cost=self.cost))

    def divergence(self, batch_size: int) -> float:
        """The most that E KL(q(e|x) || N(0, I)) can be, in nats: a sample gets one of pool * B noises."""
        return math.log(self.pool * batch_size)

    def memory(self, batch_size: int, numbers: int) -> int:
        """Bytes that pairing takes: the costs of all pairs, a few times over, more often where conditions count."""
        return (28 if self.conditions is None else 100) * self.pool * batch_size**2

    def pair(self, x: Tensor, noise: Tensor, mask: Tensor | None, condition: Tensor | None) -> Tensor:
        """The noise of each sample (B,), int64 on the CPU: the optimal assignment.

        Samples (B, D) are finite and zero where masked out; noise j of (M, D) belongs to the condition of sample
        j mod B.
        """
        target = precise(standardize(x, mask) if self.standardized else x)
        costs = distances(target, noise.to(target.dtype), mask, self.cost)
        potentials = None if self.potentials is None else self.potentials(target).cpu()
        if self.conditions is None or condition is None:
            return solve(costs.cpu(), potentials)
        return self._pair_conditions(costs, condition.flatten(1) if condition.ndim > 1 else condition[:, None])

    def _pair_conditions(self, costs: Tensor, condition: Tensor) -> Tensor:
        """The optimal assignment at costs (B, M) of distances, with conditions (B, C) in the cost."""
        assert self.conditions is not None
        if torch.is_floating_point(condition) and not torch.isfinite(condition).all():
            raise ValueError("condition contains NaN or infinity; clean it before selecting noise")
        if not torch.is_floating_point(condition) or self.conditions.weight == math.inf:
            return self._pair_within(costs.cpu(), condition.unique(dim=0, return_inverse=True)[1].cpu())
        costs = costs.double()  # a large weight must not drown the distances
        apart = condition_distances(condition.double(), self.conditions.cost)  # (B, B)
        weight = self.conditions.weight
        chosen = condition_weight(costs[:, : len(costs)], apart, self.conditions.ratio) if weight is None else weight
        return solve((costs + chosen * apart.repeat(1, self.pool)).cpu())

    def _pair_within(self, costs: Tensor, group: Tensor) -> Tensor:
        """The optimal assignment of costs (B, M) in which every sample gets a noise of its own group (B,)."""
        choice = torch.empty(len(costs), dtype=torch.long)
        noise_group = group.repeat(self.pool)
        for label in group.unique():
            rows, columns = (group == label).nonzero()[:, 0], (noise_group == label).nonzero()[:, 0]
            choice[rows] = columns[solve(costs[rows][:, columns])]
        return choice
