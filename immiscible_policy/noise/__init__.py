"""Immiscible noise: drop-in replacements for `torch.randn_like(x)` that choose the noise to suit the sample.

```python
from immiscible_policy.noise import make_selector

select = make_selector("knn", k=2)
eps = select(x)  # x: (B, ...) -> noise of the same shape, dtype and device
```

Every selector is called as `select(x, condition=None, mask=None, step=None, generator=None)` and has no state
between calls. `make_selector("my_lab.noise:MySelector", temperature=2)` builds one from elsewhere.
`fit_potentials` makes assignment faster, `AcrossProcesses(select)` selects over the batch of all processes,
`ForResidual(select, fit_mlp_prediction(c, x))` selects for what the condition leaves open, and
`immiscible_policy.noise.audit.audit` measures what a selector does to the noise. This package needs torch and scipy,
nothing else.
"""

from immiscible_policy.noise.distributed import AcrossProcesses
from immiscible_policy.noise.potentials import Potentials, fit_potentials
from immiscible_policy.noise.prediction import (
    CONDITIONAL_MEANS,
    LinearPrediction,
    MLPPrediction,
    cross_fitted,
    fit_linear_prediction,
    fit_mlp_prediction,
)
from immiscible_policy.noise.registry import SELECTORS, find_selector, make_selector, selector_options
from immiscible_policy.noise.residual import ForResidual
from immiscible_policy.noise.selector import Selector
