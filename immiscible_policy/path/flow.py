"""Flow matching: straight paths from noise to data, and the velocity along them.

      t = 0                             t = 1
    noise e ---- x_t = (1 - t) e + t x ----> data x            velocity x - e

Conditional flow matching with sigma = 0 (Lipman et al., 2023; Tong et al., 2024). What the network learns, and what its
output f then says of x_t:

    velocity   x - e      x = x_t + (1 - t) f     e = x_t - t f
    sample     x          x = f                   e = (x_t - t f) / (1 - t)

A network that predicts x need not carry the noise through to its output: with few calls that is worth most.

Solvers visit equal steps of t (`trailing`), or times shifted toward the data, t' = t / (t + s (1 - t)) with s = 1/3:
the shift of Esser et al. (2024, equation 23), with which large images go the other way. An action is almost known from
its observation, so little is left to decide near the noise.

    calls      2         3                 5
    trailing   0  0.5    0  0.33  0.67     0  0.2   0.4   0.6   0.8
    shifted    0  0.75   0  0.6   0.86     0  0.43  0.67  0.82  0.92
"""

from __future__ import annotations

import torch
from torch import Tensor

from immiscible_policy.path.base import (
    Level,
    PathSample,
    Prediction,
    ProbabilityPath,
    add_scaled,
    per_sample,
)

TIME_SCALE = 1000.0
"""Factor on t for the network, whose sinusoidal embedding resolves times of 0 to 1,000."""


PREDICTIONS = ("velocity", "sample")
TIMES = ("uniform", "logit_normal", "calls")
SHIFTS = {"trailing": 1.0, "shifted": 1 / 3}
"""s of each spacing."""


class Flow(ProbabilityPath):
    """Straight paths, and a network that predicts the velocity (Tong et al., 2024, equation 10) or the clean sample.

    Args:
        prediction: What the network predicts, one of `PREDICTIONS`.
        law: Law of the training times, one of `TIMES`: `logit_normal` is the sigmoid of a standard normal number
            (Esser et al., 2024, equation 19), which trains the middle of the paths most; `calls` are the times at
            which `euler` calls the network, each as likely.
        calls: Network calls of `euler`, for the law `calls`.
        spacing: Their spacing.

    Raises:
        ValueError: If a name is unknown, or spacing is that of no grid here.
    """

    solvers: tuple[str, ...] = ("euler", "heun", "ddim", "ddpm", "dpmpp", "renoise")
    clipped = False

    def __init__(self, prediction: str = "velocity", law: str = "uniform", calls: int = 1, spacing: str = "trailing"):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction}: flow matching predicts {' or '.join(PREDICTIONS)}")
        if law not in TIMES:
            raise ValueError(f"times={law}: choose from {', '.join(TIMES)}")
        self.prediction, self.law = prediction, law
        self.called = torch.tensor([level.alpha for level in self.levels(calls, spacing)], device="cpu")

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """Uniform over [0, 1), logit-normal inside it, or those of the calls."""
        if self.law == "calls":
            chosen = torch.randint(len(self.called), (count,), generator=generator, device=generator.device)
            return self.called.to(generator.device)[chosen]
        if self.law == "uniform":
            return torch.rand(count, generator=generator, device=generator.device)
        return torch.randn(count, generator=generator, device=generator.device).sigmoid()

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """A point on the line from noise to clean sample."""
        target = clean if self.prediction == "sample" else clean - noise
        return PathSample(torch.lerp(noise, clean, per_sample(t, clean)), target, t)

    def network_time(self, t: Tensor) -> Tensor:
        """1,000 t."""
        return TIME_SCALE * t

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """Module docstring, with alpha = t and sigma = 1 - t."""
        if self.prediction == "sample":
            return Prediction(output.clone(), add_scaled(noisy, output, -alpha).div_(sigma))
        return Prediction(add_scaled(noisy, output, sigma), add_scaled(noisy, output, -alpha))

    def levels(self, count: int, spacing: str) -> list[Level]:
        """Times from 0 on, `trailing` or `shifted` as in the module docstring; ValueError for another spacing."""
        if spacing not in SHIFTS:
            raise ValueError(f"spacing={spacing}: flow matching has no published grid; use {' or '.join(SHIFTS)}")
        uniform = [i / count for i in range(count)]
        times = [t / (t + SHIFTS[spacing] * (1 - t)) for t in uniform]
        return [Level(TIME_SCALE * t, t, 1 - t) for t in times]
