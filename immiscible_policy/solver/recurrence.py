"""The one recurrence that every solver is, with different numbers.

At each network call, with x the point, x_0 and e what the path reads from the network's output there, x_0' and e' the
same at the call before, and r the range of the data:

    x_0, e = path.split(network(x, t), x),        x_0 clipped to [-r, r] where the path asks for it
    next x = keep x + clean x_0 + predicted e + before x_0' + before_predicted e' + fresh xi,      xi ~ N(0, I)

Shape legend: B rows, S network calls, N draws of noise, ... the shape of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.path import ProbabilityPath

Calls = Callable[[int, Tensor], Tensor]
"""(i, x (B, ...)) -> the network's output (B, ...) at the i-th call."""


class Step(NamedTuple):
    """The numbers of one network call: its level (see `path.base`), then the factors of the recurrence above."""

    t: float
    alpha: float
    sigma: float
    keep: float = 0.0
    clean: float = 0.0
    predicted: float = 0.0
    before: float = 0.0
    before_predicted: float = 0.0
    fresh: float = 0.0


Plan = tuple[Step, ...]
"""A solver's network calls on a path, the noisiest first."""


def draws(plan: Plan) -> int:
    """How often a row draws noise: for its start, and for each call after which some is added."""
    return 1 + sum(step.fresh > 0 for step in plan)


def noise_rows(generators: Sequence[torch.Generator], count: int, shape: Sequence[int]) -> Tensor:
    """All noise of a solution (N, B, ...): the start noise and then that of each call that adds some.

    Every row draws from its own generator, one sample at a time, so that it does not depend on its neighbours. Where
    one draw of (N, ...) gives the same numbers (on the CPU, which fills blocks of 16), that is what is done. The count
    N is that of `draws`; the shape is that of one sample.
    """
    whole = math.prod(shape) % 16 == 0

    def row(g: torch.Generator) -> Tensor:
        if whole and g.device.type == "cpu":
            return torch.randn((count, *shape), generator=g)
        return torch.stack([torch.randn(tuple(shape), generator=g, device=g.device) for _ in range(count)])

    return torch.stack([row(g) for g in generators], dim=1)


def solve(
    calls: Calls, path: ProbabilityPath, plan: Plan, noise: Tensor, *, limit: float, record: list[Tensor] | None = None
) -> Tensor:
    """Go from noise to data: a function of tensors and weights alone, nothing is drawn or read back.

    Args:
        calls: The network at each step of the plan.
        path: Reads its outputs.
        plan: What the solver does.
        noise: Start noise and noise to add (N, B, ...), as `noise_rows` draws it.
        limit: Largest magnitude of a clean number.
        record: Receives the clean sample (B, ...) that each call predicts.

    Returns:
        Clean samples (B, ...), within the limit.
    """
    x, added = path.start(noise[0]), iter(noise[1:])
    clean = predicted = x  # of the call before; the first step has no use for them
    for i, step in enumerate(plan):
        before, before_predicted = clean, predicted
        clean, predicted = path.split(calls(i, x).to(x.dtype), x, step.alpha, step.sigma)
        if path.clipped:
            clean = clean.clamp_(-limit, limit)
        if record is not None:
            record.append(clean.clamp(-limit, limit))
        following = step.clean * clean
        factors = (step.keep, step.predicted, step.before, step.before_predicted)
        for factor, term in zip(factors, (x, predicted, before, before_predicted), strict=True):
            if factor:
                following.add_(term, alpha=factor)
        if step.fresh:
            following.add_(next(added), alpha=step.fresh)
        x = following
    return x.clamp(-limit, limit)
