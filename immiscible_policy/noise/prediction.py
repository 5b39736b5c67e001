"""What conditions make expected of samples: two regressions m(c), and predictions for samples that no fit has seen.

Shape legend: N fitted samples, B samples, D numbers per sample, C numbers per condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.costs import SMALLEST_STD
from immiscible_policy.noise.mlp import mlp, mlp_weights

Prediction = Callable[[Tensor], Tensor]
"""Predicts flattened samples (B, D) from conditions (B, ...)."""
RIDGE = 1e-4
"""Penalty of the linear regression, per sample; conditions are normalised numbers of about unit size."""
HIDDEN, STEPS, BATCH, LR = 64, 400, 256, 1e-2
"""Width of the network's two hidden layers; steps, batch size and peak learning rate of its fit."""
FOLDS = 5


def _numbers(condition: Tensor) -> Tensor:
    """A condition's numbers (B, C); integers and truth values as float32, or weights would be rounded to them."""
    return condition.flatten(1) if condition.is_floating_point() else condition.flatten(1).float()


@dataclass(frozen=True)
class LinearPrediction:
    """The samples that conditions make expected: weights (C + 1, D), the last row for the constant."""

    weights: Tensor

    def __call__(self, condition: Tensor) -> Tensor:
        """Predict flattened samples (B, D) from conditions (B, ...).

        Raises:
            ValueError: If the conditions hold another count of numbers than those of the fit.
        """
        c = _numbers(condition)
        if c.shape[1] != len(self.weights) - 1:
            raise ValueError(f"condition has {c.shape[1]} numbers a row; the prediction needs {len(self.weights) - 1}")
        weights = self.weights.to(c)
        return torch.addmm(weights[-1], c, weights[:-1])


@dataclass(frozen=True, eq=False)
class MLPPrediction:
    """A linear prediction, and a small network for what it leaves open: m(c) = W (c, 1) + scale * f((c - mean) / std).

    Mean and std (C,) are those of the conditions of the fit.
    """

    linear: LinearPrediction
    mean: Tensor
    std: Tensor
    scale: float
    weights: tuple[Tensor, ...]

    def __call__(self, condition: Tensor) -> Tensor:
        """Predict flattened samples (B, D) from conditions (B, ...)."""
        expected = self.linear(condition)
        numbers = _numbers(condition)
        c = (numbers - self.mean.to(numbers)) / self.std.to(numbers)
        return expected + self.scale * mlp(self.weights, c)


def fit_linear_prediction(condition: Tensor, x: Tensor, *, ridge: float = RIDGE) -> LinearPrediction:
    """Ridge regression of clean samples (N, ...), as the selector will see them, on conditions (N, ...), in float64.

    The penalty `ridge` per sample is above 0; the constant goes free.

    Raises:
        ValueError: If the rows differ in number, or hold NaN or infinity.
    """
    c, y = condition.flatten(1).double(), x.flatten(1).double()
    if len(c) != len(y) or not len(c):
        raise ValueError(f"{len(c)} conditions and {len(y)} samples; needs as many of each, 1 or more")
    if not (torch.isfinite(c).all() and torch.isfinite(y).all()):
        raise ValueError("conditions or samples contain NaN or infinity; clean the data before fitting")
    centre, mean = c.mean(dim=0), y.mean(dim=0)
    c = c - centre
    penalty = ridge * len(c) * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    slopes = torch.linalg.solve(c.T @ c + penalty, c.T @ (y - mean))  # (C, D)
    return LinearPrediction(torch.cat([slopes, (mean - centre @ slopes)[None]]).float())


def fit_mlp_prediction(
    condition: Tensor, x: Tensor, *, steps: int = STEPS, generator: torch.Generator | None = None
) -> MLPPrediction:
    """Least squares by Adam, from the linear prediction on: about a millisecond a step for action chunks.

    Samples (N, ...) and conditions (N, ...) as for `fit_linear_prediction`, which raises ValueError for unusable ones.
    The generator is on the CPU; by default one of its own, so that fits repeat.
    """
    linear = fit_linear_prediction(condition, x)
    generator = generator or torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        c, y = condition.detach().flatten(1).float().clone(), x.detach().flatten(1).float().clone()
        mean, std = c.mean(dim=0), c.std(dim=0, correction=0).clamp_min(SMALLEST_STD)
        rest, c = y - linear(c), (c - mean) / std
        scale = float(rest.square().mean().sqrt().clamp_min(SMALLEST_STD))
        weights = mlp_weights((c.shape[1], HIDDEN, HIDDEN, y.shape[1]), generator, c.device)
        with torch.no_grad():
            weights[-2].zero_()  # starts at the linear prediction
        optimizer = torch.optim.AdamW(weights, lr=LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(len(c), (BATCH,), generator=generator).to(c.device)
            optimizer.zero_grad()
            (mlp(weights, c[rows]) - rest[rows] / scale).square().mean().backward()
            optimizer.step()
            schedule.step()
    return MLPPrediction(linear, mean, std, scale, tuple(weight.detach() for weight in weights))


CONDITIONAL_MEANS: dict[str, Callable[[Tensor, Tensor], Prediction]] = {
    "linear": fit_linear_prediction,
    "mlp": fit_mlp_prediction,
}
"""How each m(c) is fitted to conditions (N, ...) and samples (N, ...)."""


@torch.no_grad()
def cross_fitted(
    fit: Callable[[Tensor, Tensor], Prediction], condition: Tensor, x: Tensor, group: Tensor | None = None
) -> Tensor:
    """Predictions (N, D) of samples (N, ...) from conditions (N, ...), each by a fit that has not seen its group.

    Groups (N,), such as the episodes that samples are from, are dealt out to five folds; the samples of a fold are
    predicted by what is fitted to the other four. Without groups, or with one, folds are five runs of samples.

    Raises:
        ValueError: If the rows differ in number, are fewer than 2, or hold NaN or infinity.
    """
    if len(condition) != len(x) or len(x) < 2:
        raise ValueError(f"{len(condition)} conditions and {len(x)} samples; needs as many of each, 2 or more")
    fold = torch.arange(len(x), device=x.device) * FOLDS // len(x)
    if group is not None and len(group.unique()) > 1:
        fold = group.unique(return_inverse=True)[1] % FOLDS
    expected = x.new_empty(len(x), x[0].numel())
    for number in fold.unique():
        held_out = fold == number
        expected[held_out] = fit(condition[~held_out], x[~held_out])(condition[held_out]).to(x.dtype)
    return expected
