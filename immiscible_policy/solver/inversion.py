"""From data back to the noise that a deterministic solver starts from: its steps backwards (DDIM inversion).

A step of DDIM, or of Euler, leads from x = alpha x_0 + sigma e to y = alpha' x_0 + sigma' e, where x_0 and e are read
from the network's output at x. Backwards y is known and x is not, so x is approached from x = y on, by

    x <- alpha / alpha' y + (sigma - sigma' alpha / alpha') e(x),    or, along the straight path of flow matching,
    x <- y + (alpha - alpha') x_0(x) + (sigma - sigma') e(x).

One round of it is DDIM inversion (Song et al., 2021, section 4.3); more rounds come nearer to the exact inverse where
they converge. Clean samples are not clipped.
"""

from __future__ import annotations

from torch import Tensor

from immiscible_policy.path import Flow, ProbabilityPath
from immiscible_policy.solver.recurrence import Calls, Plan


def invert(calls: Calls, path: ProbabilityPath, plan: Plan, x: Tensor, *, rounds: int = 1) -> Tensor:
    """Start noises (B, ...) from which a plan leads to clean samples x (B, ...), nearly.

    Args:
        calls: The network at each step of the plan.
        path: Reads its outputs.
        plan: Steps of `ddim` without noise, or of `euler`.
        x: Clean samples.
        rounds: Network calls for each step, 1 or more.

    Raises:
        ValueError: If a step of the plan looks at the step before it or adds noise.
    """
    if any(step.keep or step.before or step.before_predicted or step.fresh for step in plan):
        raise ValueError("only solver=ddim with eta=0 and solver=euler can be inverted; use one of them")
    for i, step in reversed(list(enumerate(plan))):
        y, ratio = x, step.alpha / step.clean
        for _ in range(rounds):
            clean, predicted = path.split(calls(i, x).to(x.dtype), x, step.alpha, step.sigma)
            if isinstance(path, Flow):
                x = y + (step.alpha - step.clean) * clean + (step.sigma - step.predicted) * predicted
            else:
                x = ratio * y + (step.sigma - step.predicted * ratio) * predicted
    return x
