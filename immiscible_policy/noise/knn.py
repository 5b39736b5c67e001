"""KNN noise: of k noises per sample, keep the one nearest to it (Improved Immiscible Diffusion, arXiv 2505.18521).

Shape legend: B samples, D numbers per sample, k candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_policy.noise.inputs import check, draw, flatten, require_finite

MOST_CANDIDATES = 1_000_000
CHEAPER_LITERAL = 128
"""Up to this many numbers per sample (k * D) the literal form costs less than the projected one."""


@dataclass(frozen=True)
class KNN:
    """Nearest of k noises, sample by sample, by Euclidean distance.

    Attributes:
        k: Candidates per sample; 1 is vanilla noise.
        form: `literal` draws all k candidates, O(kD); `projected` draws the winner alone, O(D), with exactly the
            same law; `auto` takes whichever is cheaper for this k and D (`literal` while k * D <= 128).

    Raises:
        ValueError: If k is not a whole number >= 1 or the form is unknown.
    """

    k: int = 2
    form: Literal["auto", "literal", "projected"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MOST_CANDIDATES:
            raise ValueError(f"k={self.k}: knn needs a whole number of candidates, 1 to {MOST_CANDIDATES:,}")
        if self.form not in ("auto", "literal", "projected"):
            raise ValueError(f"form={self.form}: knn knows auto, literal and projected")

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
        """Draw the nearest of k noises for each sample of x (B, ...).

        Args:
            x: Clean samples, any floating-point dtype; distances are measured in at least float32.
            condition: Not needed: the choice is made within one sample.
            mask: Boolean, broadcasts to x; only numbers where it is True enter the distance.
            step: Not needed: k is constant.
            generator: Source of randomness.

        Raises:
            ValueError: For unusable x, condition or mask.
        """
        check(x, condition, mask)
        flat, counts = flatten(x, mask)
        literal = self.form == "literal" or (self.form == "auto" and self.k * flat.shape[1] <= CHEAPER_LITERAL)
        nearest = nearest_of_candidates if literal else nearest_by_projection
        noise = nearest(flat, counts, self.k, generator).to(x.dtype).reshape(x.shape)
        return require_finite(x, noise, flat.square().sum(dim=1))


def nearest_of_candidates(x: Tensor, mask: Tensor | None, k: int, generator: torch.Generator | None) -> Tensor:
    """Draw k noises per sample and keep the nearest: the definition, O(kD) time and memory.

    Args:
        x: Samples (B, D), zero where masked out.
        mask: Numbers that count in the distance (B, D), or None for all.
        k: Candidates.
        generator: Source of randomness.

    Returns:
        Noise (B, D).
    """
    noises = draw(x.new_empty(k, *x.shape), generator)  # (k, B, D)
    difference = noises - x
    if mask is not None:
        difference = torch.where(mask, difference, 0.0)
    winner = difference.square().sum(dim=2).argmin(dim=0)  # (B,)
    return noises[winner, torch.arange(len(x), device=x.device)]


def nearest_by_projection(x: Tensor, mask: Tensor | None, k: int, generator: torch.Generator | None) -> Tensor:
    """Draw the nearest of k noises without drawing the k noises: same law, O(D) time and memory.

    With r = ||x|| and u = x / r, candidate j enters its distance to x only through z_j ~ N(0, 1), its part along u,
    and q_j ~ chi-squared(D - 1), the squared length of the rest:

        ||x - e_j||^2 = r^2 - 2 r z_j + z_j^2 + q_j.

    The winner's direction across u is uniform and independent of both, so one Gaussian vector, stripped of its part
    along u and brought to length sqrt(q_j), completes it. For x = 0 any u serves: the rule is then the shortest noise.

    Args:
        x: Samples (B, D), zero where masked out.
        mask: Numbers that count in the distance (B, D), or None for all; D is then their number in each sample.
        k: Candidates.
        generator: Source of randomness.

    Returns:
        Noise (B, D); plain where masked out.
    """
    g = draw(x, generator)  # (B, D)
    inside = g if mask is None else torch.where(mask, g, 0.0)
    dims = x.new_full((len(x), 1), x.shape[1]) if mask is None else mask.sum(dim=1, keepdim=True).to(x.dtype)

    r = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (B, 1)
    length = torch.linalg.vector_norm(inside, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    first = _first_axis(x, mask)
    u = torch.where(r > 0, x / torch.where(r > 0, r, 1.0), first)  # (B, D), unit
    z = draw(x.new_empty(len(x), k), generator)  # (B, k)
    q = _chi_squared((dims - 1).clamp_min(0).expand(-1, k), generator)  # (B, k)
    winner = (z.square() + q - 2 * r * z).argmin(dim=1, keepdim=True)  # (B, 1)
    z, q = z.gather(1, winner), q.gather(1, winner)

    across = inside - (inside * u).sum(dim=1, keepdim=True) * u
    norm = torch.linalg.vector_norm(across, dim=1, keepdim=True)
    safe = norm > 1e-6 * length  # with one dimension nothing lies across u
    across = torch.where(safe, across * (q.sqrt() / torch.where(safe, norm, 1.0)), 0.0)
    chosen = across + z * u
    return chosen if mask is None else torch.where(mask, chosen, g)


def _chi_squared(degrees: Tensor, generator: torch.Generator | None) -> Tensor:
    """Chi-squared draws, one for each of the degrees of freedom; 0 where there are none."""
    device = degrees.device if generator is None else generator.device
    shape = (degrees / 2).clamp_min(0.5).contiguous().to(device)
    gamma = torch._standard_gamma(shape, generator=generator).to(degrees.device)
    return torch.where(degrees > 0, 2 * gamma, 0.0)


def _first_axis(x: Tensor, mask: Tensor | None) -> Tensor:
    """A unit vector for each sample, along its first number that counts."""
    if mask is None:
        return torch.nn.functional.one_hot(x.new_zeros(1, dtype=torch.long), x.shape[1]).to(x.dtype)
    return torch.nn.functional.one_hot(mask.int().argmax(dim=1), x.shape[1]).to(x.dtype) * mask
