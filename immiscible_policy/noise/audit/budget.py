"""What selected noise can tell, what of it does harm, and whether selection can pay on some data.

For the law q(e|x) of a sample's noise, and conditions c that the network sees besides:

    E KL(q(e|x) || N)  =  I(c; e)  +  KL(q(e) || N)  +  I(x; e | c)
    what is spent         harm: the prior shift, and     benefit: what noise tells
    (`divergence`)        sampling that starts elsewhere of the sample beyond c

The first two are E KL(q(e|c) || N). Of all laws with the same means and variances the Gaussian is nearest to N, so with
s_d = E e_d^2 and v_d = E (e_d - m_d(c))^2, whatever m is,

    harm  >=  sum_d (s_d - 1 - log v_d) / 2 .

Shape legend: N samples, P pairs of a sample and its noise, D numbers per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from immiscible_policy.noise.prediction import cross_fitted, fit_linear_prediction, fit_mlp_prediction
from immiscible_policy.noise.residual import ForResidual
from immiscible_policy.noise.selector import Selector

PROBES = (partial(fit_linear_prediction, ridge=0.01), partial(fit_mlp_prediction, steps=100))
"""How noise is predicted: with restraint, for there is little to learn and much chance to learn by heart."""
LITTLE, MUCH = 0.1, 0.8
"""Shares of the action's variance: the observation explains little below the first, nearly all from the second on."""


def divergence(select: Selector, batch_size: int) -> float | None:
    """The most that E KL(q(e|x) || N(0, I)) can be for a selector, in nats; None if it does not know."""
    own = getattr(select.select if isinstance(select, ForResidual) else select, "divergence", None)
    return None if own is None else own(batch_size)


@dataclass(frozen=True)
class Probe:
    """What conditions tell of selected noise, on held-out pairs, by the better of a linear fit and a small network."""

    shift: float  # root mean square length of the mean noise that a condition meets, at least; 0 for plain noise
    variance: float  # variance of the noise given the condition, per number, at most
    harm: float  # I(c; e) + KL(q(e) || N), in nats, at least


def probe(condition: Tensor, noise: Tensor, group: Tensor | None = None) -> Probe:
    """Probe noise (P, ...) that was selected under conditions (P, ...); takes about a second.

    Pairs of one group (P,), such as the episode or the sample, are predicted from those of others.

    Raises:
        ValueError: If the rows differ in number, are fewer than 2, or hold NaN or infinity.
    """
    e = noise.flatten(1).float()
    probes = [_explained_noise(cross_fitted(fit, condition, e, group), e) for fit in PROBES]
    return max(probes, key=lambda probe: probe.shift)


def _explained_noise(expected: Tensor, e: Tensor) -> Probe:
    """What predictions (P, D) explain of noise (P, D), shrunk by one factor to the best: fits learn chance by heart."""
    expected, e = expected.double(), e.double()
    power, shared = float(expected.square().sum()), max(0.0, float((e * expected).sum()))
    factor = shared / power if power > 0 else 0.0
    left = (e - factor * expected).square().mean(dim=0)  # (D,)
    harm = float((e.square().mean(dim=0) - 1 - left.log()).sum()) / 2
    chance = e.shape[1] / (2 * len(e))  # what as much plain noise has: (s_d - 1)^2 / 4 on average, over D numbers
    return Probe(math.sqrt(factor * shared / len(e)), float(left.mean()), max(0.0, harm - chance))


@dataclass(frozen=True)
class Explained:
    """Share of the variance of samples that their conditions explain, R^2, on held-out groups."""

    linear: float
    mlp: float

    @property
    def advice(self) -> str:
        """Whether selection can pay, in a sentence."""
        best = max(0.0, self.linear, self.mlp)
        share = f"The observation explains {100 * best:.0f} % of the action on held-out episodes"
        if best >= MUCH:
            return f"{share} ({100 * MUCH:.0f} % or more): selected noise has nearly nothing left to tell; use vanilla."
        if best >= LITTLE:
            return (
                f"{share} ({100 * LITTLE:.0f} to {100 * MUCH:.0f} %): knn or sign may help with one or two network "
                "calls; linear does harm, because its noise tells the observation's part of the action."
            )
        return (
            f"{share} (less than {100 * LITTLE:.0f} %): linear may help with one to three network calls; it tells much "
            "of the action and keeps the noise Gaussian."
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
