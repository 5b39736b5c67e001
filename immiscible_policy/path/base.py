"""What every path offers: a clean sample and its noise meet at a time, and the network learns something of it.

Every path is a straight combination x_t = alpha_t x + sigma_t e of a clean sample x and noise e::

    time       start of sampling                                             end
    x_t        noise  ---------------- alpha_t x + sigma_t e ----------------  x
    alpha_t    about 0                                                         1
    sigma_t    large                                                           0

So whatever the network learns (the noise, the clean sample, a velocity), its output says two things, `Prediction`:
which clean sample and which noise it takes x_t to be made of. Solvers need nothing else of a path.

Shape legend: B samples, ... the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), what the path gives it for the time (B,)) -> raw output (B, ...)."""


class PathSample(NamedTuple):
    """Points on their paths: x_t (B, ...), what the network is to predict (B, ...), times (B,) in the path's units."""

    noisy: Tensor
    target: Tensor
    t: Tensor


class Prediction(NamedTuple):
    """What a network's output says x_t is made of: a clean sample (B, ...) and noise (B, ...)."""

    clean: Tensor
    noise: Tensor


class Level(NamedTuple):
    """A time of a solver's grid."""

    t: float  # what the network is given for the time
    alpha: float  # share of the clean sample in x_t
    sigma: float  # standard deviation of the noise in x_t


CLEAN = Level(0.0, 1.0, 0.0)
"""The end of every path; no network is called there."""


class ProbabilityPath(Protocol):
    """A probability path from noise to data: how clean sample and noise meet at a time, and what the network learns.

    The term is that of flow matching (Lipman et al., 2023): the law of x_t goes from N(0, I) to that of the data.
    """

    solvers: tuple[str, ...]  # names of the solvers that go from noise to data on it; the first is the default
    clipped: bool  # whether solvers clip every predicted clean sample to the range of the data

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Draw training times (count,), in the units of the path, on the generator's device.

        The training step is for paths whose law of times follows a schedule; None is the end of training.
        """
        ...

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Let clean samples (B, ...) and noise (B, ...) meet at times t (B,)."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is given for times t (B,): by default t itself."""
        return t

    def evaluate(self, network: Network, noisy: Tensor, t: Tensor) -> Tensor:
        """The network's float32 output (B, ...) for x_t (B, ...) at times t (B,)."""
        return network(noisy, self.network_time(t)).float()

    def loss(self, network: Network, sample: PathSample) -> Tensor:
        """Mean loss of what `sample` returned, or of some of its rows: a scalar; by default the mean squared error."""
        return torch.nn.functional.mse_loss(self.evaluate(network, sample.noisy, sample.t), sample.target)

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """The clean sample and the noise that an output (B, ...) implies for x_t (B, ...).

        alpha_t and sigma_t are one number each, or a number per sample that broadcasts.
        """
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t (B,) at times t (B,): by default t and 1 - t, a straight line from noise to data."""
        return t, 1 - t

    def levels(self, count: int, spacing: str) -> list[Level]:
        """The grid of a solver, the noisiest level first, its clean end left out.

        Spacing `trailing` starts where the path starts, however few the levels; `leading` is the published grid of
        Diffusion Policy, which starts below it; `shifted` is `trailing` with times closer to the data.

        Raises:
            ValueError: If the path has no such grid.
        """
        ...

    def start(self, noise: Tensor) -> Tensor:
        """x_t at the first level, of standard Gaussian noise (B, ...): by default the noise itself."""
        return noise


def add_scaled(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """Return x + factor * y, for a number or for a tensor that broadcasts."""
    return x.addcmul(y, factor) if isinstance(factor, Tensor) else x.add(y, alpha=factor)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ...), to be multiplied with `like` (B, ...)."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def require_trailing(spacing: str, path: str) -> None:
    """Refuse a grid that a path does not have with a ValueError."""
    if spacing != "trailing":
        raise ValueError(f"spacing={spacing}: {path} has one grid of times; use spacing=trailing")
