"""Flow matching: straight paths from noise to data, and the velocity along them.

      t = 0                             t = 1
    noise e ---- x_t = (1 - t) e + t x ----> data x            velocity x - e

Conditional flow matching with sigma = 0 (Lipman et al., 2023; Tong et al., 2024). What the network learns, and what its
output f then says of x_t:

    velocity   x - e      x = x_t + (1 - t) f     e = x_t - t f
    sample     x          x = f                   e = (x_t - t f) / (1 - t)

A network that predicts x need not carry the noise through to its output: with few calls that is worth most.
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


PREDICTIONS = ("velocity", "sample")
TIMES = ("uniform", "logit_normal", "calls")


class Flow(ProbabilityPath):
    """Straight paths, and a network that predicts the velocity (Tong et al., 2024, equation 10) or the clean sample.

    Args:
        prediction: What the network predicts, one of `PREDICTIONS`.
        law: Law of the training times, one of `TIMES`: `logit_normal` is the sigmoid of a standard normal number
            (Esser et al., 2024, equation 19), which trains the middle of the paths most; `calls` are the times at
            which `euler` calls the network, each as likely.
        calls: Network calls of `euler`, for the law `calls`.

    Raises:
        ValueError: If a name is unknown.
    """

    solvers: tuple[str, ...] = ("euler", "heun", "ddim", "ddpm", "dpmpp", "renoise")
    clipped = False

    def __init__(self, prediction: str = "velocity", law: str = "uniform", calls: int = 1) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction}: flow matching predicts {' or '.join(PREDICTIONS)}")
        if law not in TIMES:
            raise ValueError(f"times={law}: choose from {', '.join(TIMES)}")
        self.prediction, self.law, self.calls = prediction, law, calls

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Uniform over [0, 1), logit-normal inside it, or those of the calls."""
        if self.law == "calls":
            return torch.randint(self.calls, (count,), generator=generator, device=generator.device) / self.calls
        if self.law == "uniform":
            return torch.rand(count, generator=generator, device=generator.device)
        return torch.randn(count, generator=generator, device=generator.device).sigmoid()

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """A point on the line from noise to clean sample."""
        target = clean if self.prediction == "sample" else clean - noise
        return PathSample(torch.lerp(noise, clean, per_sample(t, clean)), target, t)

    def evaluate(self, network: Network, noisy: Tensor, t: Tensor) -> Tensor:
        """The network is given 1,000 t."""
        return network(noisy, TIME_SCALE * t).float()

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """Module docstring, with alpha = t and sigma = 1 - t."""
        if self.prediction == "sample":
            return Prediction(output.clone(), add_scaled(noisy, output, -alpha).div_(sigma))
        return Prediction(add_scaled(noisy, output, sigma), add_scaled(noisy, output, -alpha))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (t, 1 - t)."""
        return t, 1 - t

    def levels(self, count: int, spacing: str) -> list[Level]:
        """Equal steps of t from 0, as `trailing`."""
        require_trailing(spacing, "flow matching")
        return [Level(TIME_SCALE * i / count, i / count, 1 - i / count) for i in range(count)]
