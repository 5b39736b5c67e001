"""The solvers: each turns a path's levels into the numbers of the recurrence.

For two levels of a path, x = alpha x_0 + sigma e and after it alpha', sigma' (see `path.base`):

    euler     the flow's straight step: alpha' x_0 + sigma' e
    ddim      the same (Song et al., 2021, equation 12), with eta of DDPM's noise put in the place of e's
    ddpm      ancestral sampling (Ho et al., 2020, equations 6 and 7) for a chain of the visited levels alone, with the
              smaller of its variances; ddim with eta = 1
    renoise   ddim with the largest noise: every predicted sample is noised anew, as in consistency sampling
              (Song et al., 2023, algorithm 1); samples spread less than the data
    dpmpp     DPM-Solver++ 2M (Lu et al., 2022, algorithm 2): a second-order correction from the call before; with
              eta = 1 SDE-DPM-Solver++ 2M (there, section 4.4)
    heun      the trapezoidal rule for dx = x_0 d alpha + e d sigma: two calls a step, one for the last
    direct    alpha' x_0: of paths without noise
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

from immiscible_policy.path.base import CLEAN, Level, ProbabilityPath
from immiscible_policy.solver.recurrence import Plan, Step


@dataclass(frozen=True)
class Solver:
    """How to go from noise to data.

    Raises ValueError if the name is unknown, steps < 1, or eta is not in [0, 1] or not 0 where nothing takes it.
    """

    name: str  # a key of `SOLVERS`
    steps: int  # network calls
    spacing: str = "trailing"  # grid of times: `trailing`, `shifted`, or `leading` as published
    eta: float = 0.0  # noise that `ddim` and `dpmpp` add: 0 is none, 1 as much as `ddpm`

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"solver={self.name}: choose from {', '.join(SOLVERS)}")
        if not isinstance(self.steps, Integral):
            raise ValueError(f"sampling_steps={self.steps!r}: needs a whole number")
        if self.steps < 1:
            raise ValueError(f"sampling_steps={self.steps}: needs 1 or more")
        if self.name == "heun" and self.steps % 2 == 0:
            calls = "solver=heun calls the network twice a step and once for the last"
            raise ValueError(f"sampling_steps={self.steps}: {calls}; use an odd number")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: needs a number from 0 to 1")
        if self.eta and self.name not in ("ddim", "dpmpp"):
            raise ValueError(f"eta={self.eta}: solver={self.name} has no eta; use solver=ddim or solver=dpmpp")

    def plan(self, path: ProbabilityPath) -> Plan:
        """The network calls on a path; a ValueError if the path does not go with this solver, or has no such grid."""
        if self.name not in path.solvers:
            raise ValueError(f"solver={self.name}: what this model learned is solved with {', '.join(path.solvers)}")
        count = (self.steps + 1) // 2 if self.name == "heun" else self.steps
        levels = [*path.levels(count, self.spacing), CLEAN]
        return SOLVERS[self.name](levels, self.eta)


def _ddim(levels: list[Level], eta: float) -> Plan:
    plan = []
    for level, after in pairwise(levels):
        fresh = eta * _posterior(level, after)[2]
        predicted = math.sqrt(after.sigma**2 - fresh**2) if eta else after.sigma
        plan.append(Step(*level, clean=after.alpha, predicted=predicted, fresh=fresh))
    return tuple(plan)


def _ddpm(levels: list[Level], eta: float) -> Plan:
    plan = []
    for level, after in pairwise(levels):
        keep, clean, fresh = _posterior(level, after)
        plan.append(Step(*level, keep=keep, clean=clean, fresh=fresh))
    return tuple(plan)


def _renoise(levels: list[Level], eta: float) -> Plan:
    return tuple(Step(*level, clean=after.alpha, fresh=after.sigma) for level, after in pairwise(levels))


def _direct(levels: list[Level], eta: float) -> Plan:
    return tuple(Step(*level, clean=after.alpha) for level, after in pairwise(levels))


def _heun(levels: list[Level], eta: float) -> Plan:
    """An Euler step, corrected by half of what x_0 and e changed; the last stays an Euler step."""
    plan = []
    for level, after in pairwise(levels):
        plan.append(Step(*level, clean=after.alpha, predicted=after.sigma))
        if after is not CLEAN:
            clean, predicted = (after.alpha - level.alpha) / 2, (after.sigma - level.sigma) / 2
            before, before_predicted = after.alpha - clean, after.sigma - predicted
            plan.append(Step(*after, 0.0, clean, predicted, before, before_predicted))
    return tuple(plan)


def _dpmpp(levels: list[Level], eta: float) -> Plan:
    """With lambda = log(alpha / sigma), h its steps, E = eta: x' = sigma'/sigma e^-Eh x + alpha' (1 - e^-(1+E)h) x_0.

    The first step has no call before it and the last ends at lambda = infinity: both are of first order, and DDIM's
    where eta = 0.
    """
    plan = []
    for before, level, after in zip([None, *levels], levels, levels[1:], strict=False):
        shrink = (level.alpha * after.sigma / (after.alpha * level.sigma)) ** eta  # e^-Eh
        keep = after.sigma / level.sigma * shrink
        weight = after.alpha - level.alpha * keep  # alpha' (1 - e^-(1+E)h)
        correction = 0.0
        if before is not None and after.sigma:
            correction = weight * (_lambda(after) - _lambda(level)) / (2 * (_lambda(level) - _lambda(before)))
        fresh = after.sigma * math.sqrt(1 - shrink**2)
        plan.append(Step(*level, keep=keep, clean=weight + correction, before=-correction, fresh=fresh))
    return tuple(plan)


def _posterior(level: Level, after: Level) -> tuple[float, float, float]:
    """Factors on x and on x_0, and the standard deviation, of x' given x and x_0 (Ho et al., 2020, equations 6, 7)."""
    ratio = level.alpha / after.alpha if after.alpha else 1.0  # x = ratio x' + noise of variance `between`
    between = level.sigma**2 - (ratio * after.sigma) ** 2
    keep = ratio * (after.sigma / level.sigma) ** 2
    return keep, after.alpha * between / level.sigma**2, after.sigma / level.sigma * math.sqrt(max(between, 0.0))


def _lambda(level: Level) -> float:
    return math.log(level.alpha) - math.log(level.sigma) if level.alpha else -math.inf


SOLVERS: dict[str, Callable[[list[Level], float], Plan]] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "dpmpp": _dpmpp,
    "euler": _ddim,
    "heun": _heun,
    "renoise": _renoise,
    "direct": _direct,
}
