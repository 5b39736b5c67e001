"""A Gaussian mixture in the place of images, and the exact answers that a perfect network would give for it.

A point with three coordinates is an image of one pixel with three colours, (B, 3, 1, 1).
"""

from types import SimpleNamespace

import torch

from immiscible_policy.path.consistency import SIGMA_MIN

ALPHA_BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
MEANS = torch.tensor([[0.6, 0.6, -0.3], [-0.6, 0.5, 0.4], [0.0, -0.7, 0.0]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
STD = 0.07


class Mixture:
    """Three round modes, all coordinates times `scale`."""

    def __init__(self, scale: float = 1.0, means=MEANS, weights=WEIGHTS, std: float = STD):
        self.means, self.weights, self.std = scale * means, weights, scale * std

    def posterior(self, x, a, b):
        """E[clean | x] and E[noise | x] (B, 3, 1, 1) for x = a clean + b noise, a and b (B,)."""
        points, a, b = x.flatten(1).double(), a.double().view(-1, 1, 1), b.double().view(-1, 1, 1)
        variance = a**2 * self.std**2 + b**2  # (B, 1, 1), of x in every mode
        away = points[:, None] - a * self.means.double()  # (B, K, 3)
        logits = self.weights.double().log() - away.square().sum(-1) / (2 * variance[..., 0])
        share = logits.softmax(-1)[..., None]  # (B, K, 1)
        clean = (share * (self.means.double() + a * self.std**2 / variance * away)).sum(1)
        noise = (share * (b / variance * away)).sum(1)
        return clean.view_as(x), noise.view_as(x)


class DiffusionOracle(torch.nn.Module):
    """The exact noise prediction of a mixture under linear betas."""

    def __init__(self, mixture: Mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, t):
        a2 = ALPHA_BARS[t.expand(len(x))]
        return SimpleNamespace(sample=self.mixture.posterior(x, a2.sqrt(), (1 - a2).sqrt())[1].to(x))


class FlowOracle(torch.nn.Module):
    """The exact velocity of a mixture whose noise is drawn independently; counts its calls."""

    def __init__(self, mixture: Mixture):
        super().__init__()
        self.mixture, self.calls = mixture, 0

    def forward(self, x, time):
        self.calls += 1
        t = time / 1000
        clean, noise = self.mixture.posterior(x, t, 1 - t)
        return SimpleNamespace(sample=(clean - noise).to(x))


class ConsistencyOracle(torch.nn.Module):
    """The network that makes f the end of the exact path: dx / d sigma = E[noise | x], down to sigma_min."""

    def __init__(self, mixture: Mixture, sigma_data: float, steps: int = 150):
        super().__init__()
        self.mixture, self.sigma_data, self.steps = mixture, sigma_data, steps

    def forward(self, scaled, time):
        variance, sigma = self.sigma_data**2, (time.double() / 250).exp()
        s = sigma.view(-1, 1, 1, 1)
        x = scaled.double() * (s**2 + variance).sqrt()
        c_skip = variance / ((s - SIGMA_MIN) ** 2 + variance)
        c_out = (s - SIGMA_MIN) * self.sigma_data / (s**2 + variance).sqrt()
        return SimpleNamespace(sample=((self.end(x, sigma) - c_skip * x) / c_out).to(scaled))

    def end(self, x, sigma):
        """Follow each point x (B, 3, 1, 1) from its sigma (B,), in Heun's steps even in sigma^(1/7)."""
        low, high = SIGMA_MIN ** (1 / 7), sigma ** (1 / 7)
        levels = [(high + (low - high) * i / self.steps) ** 7 for i in range(self.steps + 1)]
        one = torch.ones_like(sigma)
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            length = (there - here).view(-1, 1, 1, 1)
            slope = self.mixture.posterior(x, one, here)[1]
            after = self.mixture.posterior(x + length * slope, one, there)[1]
            x = x + length * (slope + after) / 2
        return x


def assert_recovers(images, means=0.02, weights=0.03, std=0.01):
    """Images (B, 3, 1, 1) in pixels have the mixture's shares, means and spread, within these tolerances."""
    points = images.flatten(1)
    nearest = torch.cdist(points, MEANS).argmin(1)
    share = torch.bincount(nearest, minlength=len(MEANS)) / len(points)
    torch.testing.assert_close(share, WEIGHTS, rtol=0, atol=weights)
    for mode, mean in enumerate(MEANS):
        own = points[nearest == mode]
        torch.testing.assert_close(own.mean(0), mean, rtol=0, atol=means)
        torch.testing.assert_close(own.std(0), torch.full((3,), STD), rtol=0, atol=std)
