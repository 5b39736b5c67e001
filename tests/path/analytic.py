"""Networks that know the data's law: what every path's perfect network says."""

import math

import torch
from torch import Tensor

from immiscible_policy.path import Ddpm, Flow, ProbabilityPath


class MixtureNetwork:
    """The exact output for data from a mixture of Gaussians, every number drawn alone.

    With weights w_i, means m_i and one standard deviation s, x_t = alpha x + sigma e has components
    N(alpha m_i, alpha^2 s^2 + sigma^2), and E[x | x_t] is the mean of the components' posterior means.
    """

    def __init__(self, path: ProbabilityPath, means: list[float], std: float, weights: list[float] | None = None):
        self.path, self.std = path, std
        self.means = torch.tensor(means, dtype=torch.float64)
        self.weights = torch.tensor(weights or [1.0] * len(means), dtype=torch.float64)

    def clean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x | x_t]."""
        variance = alpha**2 * self.std**2 + sigma**2
        distance = x.double().unsqueeze(-1) - alpha * self.means
        shares = (self.weights.log() - distance.square() / (2 * variance)).softmax(-1)
        return (shares * (self.means + alpha * self.std**2 / variance * distance)).sum(-1)

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """What the path's network should say of x_t."""
        clean = self.clean(x, alpha, sigma)
        noise = (x.double() - alpha * clean) / sigma
        return target(self.path, clean, noise, alpha, sigma).to(x.dtype)


def target(path: ProbabilityPath, clean: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """What a path's network learns, written out."""
    if isinstance(path, Flow):
        return {"velocity": clean - noise, "sample": clean}[path.prediction]
    assert isinstance(path, Ddpm)
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[path.prediction]


def squared_cosine_alphas(steps: int) -> Tensor:
    """Cumulative alphas of Nichol and Dhariwal's schedule, written out: beta_i = min(1 - f(i+1)/f(i), 0.999)."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
