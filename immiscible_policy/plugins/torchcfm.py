"""Chosen noise for torchcfm: an object in the place of its `OTPlanSampler` (Tong et al., 2024).

torchcfm's sampler takes the rows of the noise x_0 and of the data x_1 as two given sets and draws pairs from a
transport plan between them, with replacement, so that some rows of a batch occur twice and others not at all. A
selector makes the noise for each row of x_1: every row occurs once, in order. The values of x_0 are therefore not
used: x_0 must stand for standard normal noise, as in generation, not for a second data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from immiscible_policy.noise import Selector


@dataclass(frozen=True)
class ImmisciblePlan:
    """Pairs data with noise that a selector chooses, under the method names of torchcfm's `OTPlanSampler`.

    Labels, where there are some, are the selector's condition: `c2ot` keeps noise within a class.
    """

    select: Selector

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """Chosen noise (B, ...) and the data x1 (B, ...), paired: only the shape of x0 matters, `replace` does not."""
        _check_shapes(x0, x1)
        return self.select(x1), x1

    def sample_plan_with_labels(
        self, x0: Tensor, x1: Tensor, y0: Tensor | None = None, y1: Tensor | None = None, replace: bool = True
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """As `sample_plan`, with labels y1 (B, ...) of the data as condition: the chosen noise, x1, None, and y1.

        Raises ValueError if the shapes differ, y0 is given (noise has no labels), or the selector cannot use x1 or y1.
        """
        _check_shapes(x0, x1)
        if y0 is not None:
            raise ValueError("y0 labels rows of x0, which chosen noise replaces; leave y0 out")
        return self.select(x1, condition=y1), x1, None, y1

    def get_map(self, *args: object, **options: object) -> NoReturn:
        """Raise a ValueError: there is none."""
        raise ValueError("a selector makes new noise, so that there is no plan over the rows of x0; use sample_plan")

    sample_map = get_map


def _check_shapes(x0: Tensor, x1: Tensor) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, x1 {tuple(x1.shape)}; noise and data need the same")
