"""The exact solution of the linear assignment problem, and the reductions that leave little to solve.

Shape legend: B samples, M noises (M >= B).
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def solve(costs: Tensor, potentials: Tensor | None = None) -> Tensor:
    """The cheapest assignment of a noise to every sample (modified Jonker-Volgenant, Crouse 2016).

    Numbers subtracted from a whole row, or from a whole column of a square problem, change every assignment's cost
    alike. Good dual potentials bring most of the optimal pairs to zero, and the algorithm has little left to search.

    Args:
        costs: Costs (B, M) on the CPU.
        potentials: Dual potentials of the samples (B,), or None; they change the time taken, not the result's cost.

    Returns:
        The noise of each sample (B,), int64, no noise twice.
    """
    return torch.from_numpy(linear_sum_assignment(reduce(costs, potentials).numpy())[1])


def reduce(costs: Tensor, potentials: Tensor | None = None) -> Tensor:
    """Equivalent costs (B, M) in float64, with a zero in every row (and in every column if B = M) and none below."""
    reduced = costs.double()
    if potentials is not None:
        reduced = reduced - potentials.double()[:, None]
    if costs.shape[0] == costs.shape[1]:  # a noise may be left over otherwise, and columns are no longer free
        reduced = reduced - reduced.amin(dim=0)
    return reduced - reduced.amin(dim=1, keepdim=True)
