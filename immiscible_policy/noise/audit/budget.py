"""What selected noise can tell, what of it does harm, and whether selection can pay on some data.

For the law q(e|x) of a sample's noise, and conditions c that the network sees besides:

    E KL(q(e|x) || N)  =  I(c; e)  +  KL(q(e) || N)  +  I(x; e | c)
    what is spent         harm: the prior shift, and     benefit: what noise tells
    (`divergence`)        sampling that starts elsewhere of the sample beyond c

The first two are E KL(q(e|c) || N). Of all laws with the same means and variances the Gaussian is nearest to N, so with
v_d = E (e_d - m_d(c))^2, whatever m is, and with the mean square s(c) = E[|e|^2 | c] / D,

    harm  >=  sum_d (E e_d^2 - 1 - log v_d) / 2        harm  >=  D E[s(c) - 1 - log s(c)] / 2 .

Shape legend: N samples, P pairs of a sample and its noise, D numbers per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from immiscible_policy.noise.prediction import cross_fitted, fit_linear_prediction, fit_mlp_prediction
from immiscible_policy.noise.residual import ForResidual
from immiscible_policy.noise.selector import Selector

PROBES = (partial(fit_linear_prediction, ridge=0.01), partial(fit_mlp_prediction, steps=100))
"""How noise is predicted: with restraint, for there is little to learn and much chance to learn by heart."""
SMALLEST_SQUARE = 0.01
LITTLE = 0.1
"""Share of the action's variance below which the observation explains little."""


def divergence(select: Selector, batch_size: int) -> float | None:
    """The most that E KL(q(e|x) || N(0, I)) can be for a selector, in nats; None if it does not know."""
    own = getattr(select.select if isinstance(select, ForResidual) else select, "divergence", None)
    return None if own is None else own(batch_size)


@dataclass(frozen=True)
class Probe:
    """What conditions tell of selected noise, on held-out pairs, by the better of a linear fit and a small network."""

    shift: float  # root mean square length of the mean noise that a condition meets, at least; 0 for plain noise
    variance: float  # variance of the noise given the condition, per number, at most
    spread: float  # standard deviation over conditions of the noise's mean square, at least; 0 for plain noise
    harm: float  # I(c; e) + KL(q(e) || N), in nats, at least


def probe(condition: Tensor, noise: Tensor, group: Tensor | None = None) -> Probe:
    """Probe noise (P, ...) that was selected under conditions (P, ...); takes about a second.

    Pairs of one group (P,), such as the episode or the sample, are predicted from those of others.

    Raises:
        ValueError: If the rows differ in number, are fewer than 2, or hold NaN or infinity.
    """
    e = noise.flatten(1).float()
    pairs, dims = e.shape
    square = e.square().mean(dim=1, keepdim=True)
    unit = math.sqrt(2 / dims)  # standard deviation of the mean square of plain noise
    target = torch.cat([e, (square - square.mean()) / unit], dim=1).double()  # (P, D + 1)
    fits = [cross_fitted(fit, condition, target.float(), group).double() for fit in PROBES]
    mean, shift = max((_shrunk(fit[:, :-1], target[:, :-1]) for fit in fits), key=lambda result: result[1])
    change, spread = max((_shrunk(fit[:, -1:], target[:, -1:]) for fit in fits), key=lambda result: result[1])
    left = (e - mean).square().mean(dim=0)  # (D,)
    s = (square.mean() + unit * change).clamp_min(SMALLEST_SQUARE)  # (P, 1)
    chance = dims / (2 * pairs)  # what as much plain noise has: (E e_d^2 - 1)^2 / 4 on average, over D numbers
    by_number = float((e.square().mean(dim=0) - 1 - left.log()).sum()) / 2 - chance
    by_square = dims * float((s - 1 - s.log()).mean()) / 2
    return Probe(shift, float(left.mean()), unit * spread, max(0.0, by_number, by_square))


def _shrunk(expected: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Predictions (P, D) times the best factor, as fits learn chance by heart; and their length."""
    power, shared = float(expected.square().sum()), max(0.0, float((target * expected).sum()))
    factor = shared / power if power > 0 else 0.0
    return factor * expected, math.sqrt(factor * shared / len(target))


@dataclass(frozen=True)
class Explained:
    """Share of the variance of samples that their conditions explain, R^2, on held-out groups."""

    linear: float
    mlp: float

    @property
    def advice(self) -> str:
        """Whether selection can pay, in a sentence."""
        best = max(0.0, self.linear, self.mlp)
        share = f"The observation explains {100 * best:.0f}% of the action on held-out episodes"
        if best >= LITTLE:
            return (
                f"{share} ({100 * LITTLE:.0f}% or more): use vanilla. Where several behaviours fit one observation, "
                "compare c2ot with one or two network calls; linear does harm, because its noise repeats what the "
                "observation says."
            )
        return (
            f"{share} (less than {100 * LITTLE:.0f}%): linear may help with one or two network calls; its noise says "
            "much about the action and stays Gaussian."
        )


def explained(condition: Tensor, x: Tensor, group: Tensor | None = None) -> Explained:
    """How much of samples (N, ...) conditions (N, ...) explain, where neither fit has seen their group (N,).

    Raises:
        ValueError: If the rows differ in number, are fewer than 2, hold NaN or infinity, or if samples are all equal.
    """
    flat = x.flatten(1)
    varies = (flat - flat.mean(dim=0)).square().sum()
    if varies == 0:
        raise ValueError("x does not vary; there is nothing to explain")
    fits = (fit_linear_prediction, fit_mlp_prediction)
    left = [(flat - cross_fitted(fit, condition, x, group)).square().sum() for fit in fits]
    return Explained(*(float(1 - rest / varies) for rest in left))
