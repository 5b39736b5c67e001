"""Immiscible noise: drop-in replacements for `torch.randn_like(x)` that choose the noise to suit the sample.

```python
from immiscible_policy.noise import make_selector

select = make_selector("knn", k=2)
eps = select(x)  # x: (B, ...) -> noise of the same shape, dtype and device
```

Every selector is called as `select(x, condition=None, mask=None, step=None, generator=None)` and keeps no state
between calls. This package needs torch and scipy, nothing else.
"""

from immiscible_policy.noise.registry import SELECTORS, Selector, make_selector, selector_options

__all__ = ["SELECTORS", "Selector", "make_selector", "selector_options"]
