"""Immiscible noise: drop-in replacements for `torch.randn_like(x)` that choose the noise to suit the sample.

```python
from immiscible_policy.noise import make_selector

select = make_selector("knn", k=2)
eps = select(x)  # x: (B, ...) -> noise of the same shape, dtype and device
```

Every selector is called as `select(x, condition=None, mask=None, step=None, generator=None)` and keeps no state
between calls. `fit_potentials` makes assignment faster,
`ForResidual(select, fit_linear_prediction(c, x))` selects for what the condition leaves open, and
`immiscible_policy.noise.audit.audit` tells what a selector does to the noise. This package needs torch and scipy,
nothing else.
"""

from immiscible_policy.noise.potentials import Potentials, fit_potentials
from immiscible_policy.noise.registry import SELECTORS, Selector, make_selector, selector_options
from immiscible_policy.noise.residual import ForResidual, LinearPrediction, fit_linear_prediction

__all__ = [
    "SELECTORS",
    "ForResidual",
    "LinearPrediction",
    "Potentials",
    "Selector",
    "fit_linear_prediction",
    "fit_potentials",
    "make_selector",
    "selector_options",
]
