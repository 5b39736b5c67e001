"""Flow matching: straight paths from noise to data, and the velocity along them.

      t = 0                             t = 1
    noise e ---- x_t = (1 - t) e + t x ----> data x            velocity x - e

Conditional flow matching with sigma = 0 (Lipman et al., 2023; Tong et al., 2024). An output v says
x = x_t + (1 - t) v and e = x_t - t v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from immiscible_policy.path.base import (
    Level,
    Network,
    PathSample,
    Prediction,
    ProbabilityPath,
    add_scaled,
    per_sample,
    require_trailing,
)

TIME_SCALE = 1000.0
"""Factor on t for the network, whose sinusoidal embedding resolves times of 0 to 1,000."""


class Flow(ProbabilityPath):
    """Straight paths; the network predicts the velocity (Tong et al., 2024, equation 10)."""

    solvers: tuple[str, ...] = ("euler", "heun", "ddim", "ddpm", "dpmpp", "renoise")
    clipped = False

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Uniform over [0, 1)."""
        return torch.rand(count, generator=generator, device=generator.device)

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """A point on the line from noise to clean sample."""
        return PathSample(torch.lerp(noise, clean, per_sample(t, clean)), clean - noise, t)

    def evaluate(self, network: Network, noisy: Tensor, t: Tensor) -> Tensor:
        """The network is given 1,000 t."""
        return network(noisy, TIME_SCALE * t).float()

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """Module docstring, with alpha = t and sigma = 1 - t."""
        return Prediction(add_scaled(noisy, output, sigma), add_scaled(noisy, output, -alpha))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (t, 1 - t)."""
        return t, 1 - t

    def levels(self, count: int, spacing: str) -> list[Level]:
        """Equal steps of t from 0, as `trailing`."""
        require_trailing(spacing, "flow matching")
        return [Level(TIME_SCALE * i / count, i / count, 1 - i / count) for i in range(count)]
