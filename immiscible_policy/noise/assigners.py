"""Exact solutions of the linear assignment problem, and the reductions that leave them little to do.

Shape legend: B samples, M noises (M >= B).
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

AssignerName = Literal["scipy", "lapx"]


def solve(costs: Tensor, assigner: AssignerName = "scipy", potentials: Tensor | None = None) -> Tensor:
    """The cheapest assignment of a noise to every sample.

    Numbers subtracted from a whole row, or from a whole column of a square problem, change every assignment's cost
    alike. Good dual potentials bring most of the optimal pairs to zero, and the assigner has little left to search.

    Args:
        costs: Costs (B, M) on the CPU.
        assigner: `scipy` (modified Jonker-Volgenant, Crouse 2016) or `lapx` (Jonker-Volgenant 1987).
        potentials: Dual potentials of the samples (B,), or None; they change the time taken, not the result's cost.

    Returns:
        The noise of each sample (B,), int64, no noise twice.
    """
    reduced = reduce(costs, potentials).numpy()
    if assigner == "scipy":
        return torch.from_numpy(linear_sum_assignment(reduced)[1])
    import lap

    return torch.from_numpy(lap.lapjv(reduced, extend_cost=reduced.shape[0] != reduced.shape[1])[1]).long()


def reduce(costs: Tensor, potentials: Tensor | None = None) -> Tensor:
    """Equivalent costs (B, M) in float64, with a zero in every row (and in every column if B = M) and none below."""
    reduced = costs.double()
    if potentials is not None:
        reduced = reduced - potentials.double()[:, None]
    if costs.shape[0] == costs.shape[1]:  # a noise may be left over otherwise, and columns are no longer free
        reduced = reduced - reduced.amin(dim=0)
    return reduced - reduced.amin(dim=1, keepdim=True)


def check_assigner(assigner: str) -> None:
    """Refuse an assigner that is unknown or not installed with a ValueError."""
    if assigner not in ("scipy", "lapx"):
        raise ValueError(f"assigner={assigner}: assignment knows scipy and lapx")
    if assigner == "lapx":
        try:
            import lap  # noqa: F401
        except ImportError:
            raise ValueError("assigner=lapx: it is not installed; pip install lapx, or assigner=scipy") from None
