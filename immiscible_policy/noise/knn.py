"""KNN noise: of k noises per sample, keep the one nearest to it (Improved Immiscible Diffusion, arXiv 2505.18521).

Shape legend: B samples, D numbers per sample, k candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_policy.noise.inputs import check, draw, flatten, is_whole, require_finite
from immiscible_policy.noise.schedule import Schedule

MOST_CANDIDATES = 1_000_000
CHEAPER_LITERAL = 128
"""Up to this many numbers per sample (k * D) the literal form costs less than the projected one."""
SHORTEST = 1e-18
"""Samples below this length have no direction: the square of anything shorter vanishes in float32."""


@dataclass(frozen=True)
class KNN:
    """Nearest of k noises, sample by sample.

    Attributes:
        k: Candidates per sample; 1 is vanilla noise.
        nearest: What nearest means: `distance`, the papers' Euclidean distance, which also shortens the noise; or
            `angle`, the smallest angle to the sample, which leaves the law of the noise's length as it was.
        form: `literal` draws all k candidates, O(kD); `projected` draws the winner alone, O(D), with exactly the
            same law; `auto` takes whichever is cheaper for this k and D (`literal` while k * D <= 128 or k = 1).
        start: First training step with selection.
        stop: First training step without it again; None for never.
        ramp: Steps over which the candidates grow from 1 to k after `start`, and fall back to 1 before `stop`.

    Raises:
        ValueError: If k is not a whole number >= 1, the schedule is empty, or a name is unknown.
    """

    k: int = 2
    nearest: Literal["distance", "angle"] = "distance"
    form: Literal["auto", "literal", "projected"] = "auto"
    start: int = 0
    stop: int | None = None
    ramp: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.k) or not 1 <= self.k <= MOST_CANDIDATES:
            raise ValueError(f"k={self.k}: knn needs a whole number of candidates, 1 to {MOST_CANDIDATES:,}")
        if self.nearest not in ("distance", "angle"):
            raise ValueError(f"nearest={self.nearest}: choose distance or angle")
        if self.form not in ("auto", "literal", "projected"):
            raise ValueError(f"form={self.form}: choose auto, literal or projected")
        self.schedule  # noqa: B018, refuses what is unusable

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
        """Draw the nearest of k noises for each sample of x (B, ...), whatever its condition."""
        check(x, condition, mask)
        flat, counts = flatten(x, mask)
        k = self.candidates(step)
        cheaper = k == 1 or k * flat.shape[1] <= CHEAPER_LITERAL
        literal = self.form == "literal" or (self.form == "auto" and cheaper)
        select = nearest_of_candidates if literal else nearest_by_projection
        noise = select(flat, counts, k, generator, by_angle=self.nearest == "angle")
        return require_finite(x, noise.to(x.dtype).reshape(x.shape), torch.linalg.vector_norm(flat, dim=1))

    def divergence(self, batch_size: int) -> float:
        """E KL(q(e|x) || N(0, I)) in nats: log k - 1 + 1/k.

        The nearest of k noises has the density k U^(k-1) N(e), where U is the share of all noises that lie
        farther away, and log U has the mean -1/k under that law.
        """
        return math.log(self.k) - 1 + 1 / self.k

    def memory(self, batch_size: int, numbers: int) -> int:
        """Bytes that choosing takes: the candidates' numbers, or the pairs that stand for them, a few times over."""
        return 32 * self.k * batch_size * (numbers if self.form == "literal" else 1)

    @property
    def schedule(self) -> Schedule:
        """When to select."""
        return Schedule(self.start, self.stop, self.ramp)

    def candidates(self, step: int | None) -> int:
        """Candidates at a training step: k, or fewer while the schedule's strength is below 1.

        Raises:
            ValueError: If there is a schedule and no step.
        """
        return 1 + round((self.k - 1) * self.schedule.strength(step))


def nearest_of_candidates(
    x: Tensor, mask: Tensor | None, k: int, generator: torch.Generator | None, *, by_angle: bool = False
) -> Tensor:
    """Draw k noises per sample (B, D) and keep the nearest (B, D): the definition, O(kD) time and memory.

    The mask (B, D) says which numbers enter the distance; x is zero where it is False. By angle, the nearest has the
    smallest angle to x instead of the smallest distance.
    """
    noises = draw(x.new_empty(k, *x.shape), generator)  # (k, B, D)
    counted = noises if mask is None else torch.where(mask, noises, 0.0)
    if by_angle:
        shortest = torch.finfo(x.dtype).tiny
        score = -(counted * x).sum(dim=2) / torch.linalg.vector_norm(counted, dim=2).clamp_min(shortest)
    else:
        score = (counted * (counted - 2 * x)).sum(dim=2)  # ||e - x||^2 - ||x||^2; ||x||^2 would drown it far away
    winner = score.argmin(dim=0)  # (B,)
    return noises[winner, torch.arange(len(x), device=x.device)]


def nearest_by_projection(
    x: Tensor, mask: Tensor | None, k: int, generator: torch.Generator | None, *, by_angle: bool = False
) -> Tensor:
    """Draw the nearest of k noises without drawing the k noises: same law, O(D) time and memory.

    With r = ||x|| and u = x / r, candidate j enters its distance to x only through z_j ~ N(0, 1), its part along u,
    and q_j ~ chi-squared(D - 1), the squared length of the rest:

        ||x - e_j||^2 = r^2 - 2 r z_j + z_j^2 + q_j        cos(x, e_j) = z_j / sqrt(z_j^2 + q_j).

    The winner's direction across u is uniform and independent of both, so one Gaussian vector, stripped of its part
    along u and brought to length sqrt(q_j), completes it. For x = 0 there is no u and the winner is the shortest
    noise (by distance) or any (by angle): a Gaussian vector brought to length sqrt(z_j^2 + q_j). Under a mask, D is
    the count of numbers that enter the distance; the others are plain noise. Arguments as `nearest_of_candidates`.
    """
    g = draw(x, generator)  # (B, D)
    inside = g if mask is None else torch.where(mask, g, 0.0)
    dims = x.new_full((len(x), 1), x.shape[1]) if mask is None else mask.sum(dim=1, keepdim=True).to(x.dtype)
    z = draw(x.new_empty(len(x), k), generator)  # (B, k)
    shape = ((dims - 1).expand(-1, k) / 2).clamp_min(0.5).contiguous().to(generator.device if generator else x.device)
    gamma = torch._standard_gamma(shape, generator=generator).to(x.device)
    q = torch.where(dims > 1, 2 * gamma, 0.0)  # (B, k), chi-squared draws; 0 without degrees of freedom

    r = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (B, 1)
    directed = r > SHORTEST
    score = -z * torch.rsqrt(z.square() + q) * directed if by_angle else z.square() + q - 2 * r * z
    winner = score.argmin(dim=1, keepdim=True)  # (B, 1)
    z, q = z.gather(1, winner), q.gather(1, winner)

    r = torch.where(directed, r, 1.0)
    along = (inside * x).sum(dim=1, keepdim=True) / r.square()
    across = torch.addcmul(inside, x, along, value=-1)  # inside - along x, orthogonal to x
    length = torch.where(directed, q, z.square() + q).sqrt()
    stretch = length / torch.linalg.vector_norm(across, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    chosen = across.mul_(stretch).addcmul_(x, z / r)
    return chosen if mask is None else torch.where(mask, chosen, g)
