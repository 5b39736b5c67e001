"""Noise for the residual of a sample: selection measures to what remains of it after a prediction from the condition.

A selector ties the noise to the sample, so the noise also tells what the condition tells already, and a network may
read it there: the mean noise that a condition meets in training is then not that of sampling, 0 (C2OT, arXiv
2503.10636, calls it the skewed prior). With x = m(c) + r, noise chosen for r is blind to what m explains of x.

Shape legend: B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.prediction import Prediction
from immiscible_policy.noise.selector import Selector


@dataclass(frozen=True)
class ForResidual:
    """A selector that is shown residuals to what conditions make expected, and otherwise left as it is."""

    select: Selector
    prediction: Prediction

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
        """Choose noise for x (B, ...), by its distance to the residual of x given the condition, one row per sample."""
        if condition is None:
            raise ValueError("condition is missing: residuals need one row per sample, select(x, condition=c)")
        rest = self.residual(x, condition)
        return self.select(rest, condition=condition, mask=mask, step=step, generator=generator)

    def residual(self, x: Tensor, condition: Tensor) -> Tensor:
        """The residual of x (B, ...) given the conditions (B, ...)."""
        return x - self.prediction(condition).reshape(x.shape).to(x.dtype)
