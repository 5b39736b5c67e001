"""Chosen noise for torchcfm: an object in the place of its `OTPlanSampler` (Tong et al., 2024).

```python
matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
matcher.ot_sampler = ImmisciblePlan(make_selector("knn", k=4))
t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
```

torchcfm's sampler takes the rows of the noise x_0 and of the data x_1 as two given sets and draws pairs from a
transport plan between them, with replacement, so that some rows of a batch occur twice and others not at all. A
selector makes the noise for each row of x_1: every row occurs once, in its place. The values of x_0 are therefore not
used: x_0 must stand for standard normal noise, as in generation, not for a second data set.

Shape legend: B samples of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from immiscible_policy.noise import Selector


@dataclass(frozen=True)
class ImmisciblePlan:
    """Pairs data with noise that a selector chooses, under the method names of torchcfm's `OTPlanSampler`.

    Attributes:
        select: The selector. Labels, where there are some, are its condition: `c2ot` keeps noise within a class.
    """

    select: Selector

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """Noise and data, paired.

        Args:
            x0: Noise (B, ...), of which only the shape matters.
            x1: Data (B, ...).
            replace: Without effect: every row of x1 occurs once.

        Returns:
            The chosen noise (B, ...) and x1.

        Raises:
            ValueError: If the shapes differ, or the selector cannot use x1.
        """
        _check_shapes(x0, x1)
        return self.select(x1), x1

    def sample_plan_with_labels(
        self, x0: Tensor, x1: Tensor, y0: Tensor | None = None, y1: Tensor | None = None, replace: bool = True
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """As `sample_plan`, with labels: y1 (B, ...), those of the data, are the selector's condition.

        Returns:
            The chosen noise (B, ...), x1, None, and y1.

        Raises:
            ValueError: If the shapes differ, y0 is given (noise has no labels), or the selector cannot use x1 or y1.
        """
        _check_shapes(x0, x1)
        if y0 is not None:
            raise ValueError("y0 labels rows of x0, which chosen noise replaces; leave y0 out")
        return self.select(x1, condition=y1), x1, None, y1

    def get_map(self, *args: object, **options: object) -> NoReturn:
        """There is none.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a selector makes new noise, so that there is no plan over the rows of x0; use sample_plan")

    sample_map = get_map


def _check_shapes(x0: Tensor, x1: Tensor) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, x1 {tuple(x1.shape)}; noise and data need the same")
