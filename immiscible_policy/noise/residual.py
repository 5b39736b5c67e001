"""Noise for what the condition leaves open of a sample: selection measures to the residual of a linear prediction.

A selector ties the noise to the sample, so the noise also tells what the condition tells already, and a network may
read it there: the mean noise that a condition meets in training is then not that of sampling, 0 (C2OT, arXiv
2503.10636, calls it the skewed prior). With x = W (c, 1) + r, noise chosen for r is blind to what of x is linear in c.

Shape legend: N fitted samples, B samples, D numbers per sample, C numbers per condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.selector import Selector

RIDGE = 1e-4
"""Penalty of the regression, per sample; conditions are normalised numbers of about unit size."""


@dataclass(frozen=True)
class LinearPrediction:
    """The samples that conditions make expected: weights (C + 1, D), the last row for the constant."""

    weights: Tensor

    def __call__(self, condition: Tensor) -> Tensor:
        """Predict flattened samples (B, D) from conditions (B, ...).

        Raises:
            ValueError: If the conditions hold another count of numbers than those of the fit.
        """
        c = condition.flatten(1)
        if c.shape[1] != len(self.weights) - 1:
            raise ValueError(f"condition has {c.shape[1]} numbers a row; the prediction needs {len(self.weights) - 1}")
        weights = self.weights.to(c)
        return torch.addmm(weights[-1], c, weights[:-1])


@dataclass(frozen=True)
class ForResidual:
    """A selector that is shown residuals to what conditions make expected, and otherwise left as it is."""

    select: Selector
    prediction: LinearPrediction

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
        """Choose noise for x (B, ...), by its distance to what the condition, one row per sample, leaves open of x."""
        if condition is None:
            raise ValueError("condition is missing: residuals need one row per sample, select(x, condition=c)")
        rest = self.residual(x, condition)
        return self.select(rest, condition=condition, mask=mask, step=step, generator=generator)

    def residual(self, x: Tensor, condition: Tensor) -> Tensor:
        """What the conditions (B, ...) leave open of x (B, ...)."""
        return x - self.prediction(condition).reshape(x.shape).to(x.dtype)


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
