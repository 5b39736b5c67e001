"""The noise audit: what a selector does to the noise, in one call.

```python
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import audit

found = audit(make_selector("knn", k=4), x)  # x: (N, ...) clean samples, scaled as in training
print(found.table())
found.plot().savefig("knn.png")
```

Shape legend: N samples, R batches of B samples each, D numbers per sample.
"""

from immiscible_policy.noise.audit.measure import Audit, DistanceChange, audit, distance_change, selection_seconds
from immiscible_policy.noise.audit.statistics import (
    KS,
    ClusterDistances,
    Correlation,
    GaussianKL,
    Moments,
    cluster_distances,
    correlation,
    gaussian_kl,
    kl_floor,
    ks_normal,
    moments,
    pair_distance,
    plain_ranges,
    prior_shift,
)
from immiscible_policy.noise.audit.target import ALPHA_BARS, TargetVariance, target_variance

__all__ = [
    "ALPHA_BARS",
    "KS",
    "Audit",
    "ClusterDistances",
    "Correlation",
    "DistanceChange",
    "GaussianKL",
    "Moments",
    "TargetVariance",
    "audit",
    "cluster_distances",
    "correlation",
    "distance_change",
    "gaussian_kl",
    "kl_floor",
    "ks_normal",
    "moments",
    "pair_distance",
    "plain_ranges",
    "prior_shift",
    "selection_seconds",
    "target_variance",
]
