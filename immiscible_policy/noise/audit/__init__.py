"""The noise audit: what a selector does to the noise, in one call.

```python
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import audit

measured = audit(make_selector("knn", k=4), x)  # x: (N, ...) clean samples, scaled as in training
print(measured.table())
measured.plot().savefig("knn.png")
```

`explained(condition, x, group)` says before training how much of the samples conditions explain, and whether selection
can pay; `probe(condition, noise, group)` how much of selected noise they tell.

Shape legend: N samples, R batches of B samples each, D numbers per sample.
"""

from immiscible_policy.noise.audit.budget import Explained, Probe, divergence, explained, probe
from immiscible_policy.noise.audit.measure import Audit, DistanceChange, audit, distance_change
