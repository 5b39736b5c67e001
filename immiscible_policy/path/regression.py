"""Controls without diffusion: the network predicts the clean sample, at one or two fixed times, with nothing random.

With o the condition, x the clean sample, z ~ N(0, I), and a network f(input, t, o) that predicts the clean sample:

    regression    learns   |f(0, 0, o) - x|^2                            acts with   f(0, 0, o)
    mip           learns   |f(0, 0, o) - x|^2 + |f(I, t*, o) - x|^2      acts with   f(t* f(0, 0, o), t*, o)

where I = t* x + (1 - t*) z and t* = 0.9. Both are the same loop over the times at which the network is called, (0,) and
(0, t*): at each it meets t x + (1 - t) z in training (nothing at t = 0) and t times its own last prediction in acting.

`mip` is the minimal iterative policy of "Much Ado About Noising" (Pan et al., 2025, arXiv 2512.01809). The authors'
released code differs: it meets x + (1 - t*) z, weighs the errors by 1 / t*^2 and 1 / (1 - t*)^2, and does not scale
the first prediction before the second pass. Choices of ours: errors are means over numbers instead of sums, every
prediction is clipped to the range of the data, and the network reads t as the step t C of a chain of C = 100 steps
that it does not have (0 and 90).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from immiscible_policy.path.base import Level, Network, PathSample, Prediction, ProbabilityPath, require_trailing

REGRESSION, MIP = (0.0,), (0.0, 0.9)
"""Times at which each control calls its network."""


class Regression(ProbabilityPath):
    """Prediction of the clean sample at fixed times.

    Args:
        times: When the network is called, from 0 on: `REGRESSION` or `MIP`.
        chain: What the network is given for t = 1.

    Raises:
        ValueError: If the times do not begin at 0, are more than two, or leave [0, 1).
    """

    solvers: tuple[str, ...] = ("direct",)
    clipped = True

    def __init__(self, times: Sequence[float] = REGRESSION, *, chain: int = 100) -> None:
        if len(times) not in (1, 2) or times[0] != 0 or not all(0 <= t < 1 for t in times):
            raise ValueError(f"times={tuple(times)}: needs 0 first, then at most one number below 1")
        self.grid, self.chain = tuple(times), chain

    def times(self, count: int, generator: torch.Generator, *, step: int | None = None) -> Tensor:
        """The last of the fixed times; nothing is drawn."""
        return torch.full((count,), self.grid[-1], device=generator.device)

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """What the last pass meets: t x + (1 - t) z, or nothing where there is one pass."""
        last = self.grid[-1]
        return PathSample(last * clean + (1 - last) * noise if last else torch.zeros_like(clean), clean, t)

    def network_time(self, t: Tensor) -> Tensor:
        """The nearest step of a chain."""
        return (t * self.chain).round()

    def loss(self, network: Network, sample: PathSample) -> Tensor:
        """Mean squared error of the predicted sample, summed over the passes, a scalar."""
        first = self.evaluate(network, torch.zeros_like(sample.noisy), torch.zeros_like(sample.t))
        total = torch.nn.functional.mse_loss(first, sample.target)
        return total if len(self.grid) == 1 else total + super().loss(network, sample)

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """The output is the clean sample; there is no noise."""
        return Prediction(output.clone(), torch.zeros_like(output))

    def levels(self, count: int, spacing: str) -> list[Level]:
        """The fixed times, whatever the count, as `trailing`."""
        require_trailing(spacing, "a policy that does not diffuse")
        return [Level(round(t * self.chain), t, 1 - t) for t in self.grid]

    def start(self, noise: Tensor) -> Tensor:
        """Nothing: zeros."""
        return torch.zeros_like(noise)
