"""The options of training noise that every policy type here adds to LeRobot's own.

The selectors' options are read off the selectors: what `immiscible_policy.noise` takes is taken here, under the same
name, and what a selector does not take is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from draccus.utils import DecodingError

from immiscible_policy.cli import unknown
from immiscible_policy.noise import (
    CONDITIONAL_MEANS,
    SELECTORS,
    Potentials,
    Selector,
    find_selector,
    make_selector,
    selector_options,
)
from lerobot_policy_immiscible.training_noise import FittedOnTheWay

PLAIN = "vanilla"
TARGETS = ("action", "residual")


def option_types() -> dict[str, type]:
    """The type of each option of the built-in selectors: a number, a word, or a switch where it is fitted to data."""
    types: dict[str, type] = {}
    for name in SELECTORS:
        hints = get_type_hints(find_selector(name))
        types |= {option: _plain_type(hint) for option, hint in hints.items() if option != "return"}
    return types


def _plain_type(hint: Any) -> type:
    """What a command line can say of a type: the first of a union; a word for one of several words."""
    kind = get_args(hint)[0] if type(None) in get_args(hint) else hint
    if kind is Potentials:
        return bool
    return type(get_args(kind)[0]) if get_origin(kind) is not None else kind


SelectorOptions = make_dataclass(
    "SelectorOptions", [(name, kind | None, field(default=None)) for name, kind in option_types().items()]
)
"""A field for each option of the selectors; None is the selector's own default."""


@dataclass
class NoiseOptions(SelectorOptions):  # type: ignore[misc, valid-type]  # made above
    """How training noise is chosen. Mixed into the configuration of a policy, before LeRobot's own.

    Attributes:
        noise: A selector: `vanilla`, `knn`, `sign`, `linear`, `idp26`, `c2ot`, one that another package registers, or
            `module:Class`.
        noise_options: Options of a selector from elsewhere.
        potentials: Fit potentials to the first samples: assignment yields the same pairs, faster.
        select_for: `action`, or `residual`: the residual of a prediction from the observed numbers. The
            prediction is fitted to the first samples; noise is plain until then.
        residual_mean: That prediction: `linear` or `mlp`.
        trained_steps: Training steps so far, by which the schedule (`start`, `stop`, `ramp`) goes. Checkpoints keep
            it, so that a resumed training goes on in the schedule; 0 begins it anew.

    Raises:
        DecodingError: If the noise is unknown, or an option is not the selector's or unusable.
    """

    noise: str = "knn"
    noise_options: dict[str, Any] = field(default_factory=dict)
    select_for: str = "action"
    residual_mean: str | None = None
    trained_steps: int = 0

    def __post_init__(self) -> None:
        try:
            self.selector()
        except ValueError as error:
            raise DecodingError((), str(error)) from None  # which lerobot-train prints without a traceback
        super().__post_init__()

    def selector(self) -> Selector:
        """What chooses the noise, not fitted to anything yet.

        Raises:
            ValueError: As above.
        """
        named = {name: getattr(self, name) for name in option_types()}
        given = {name: value for name, value in named.items() if value is not None}
        fit = "potentials" in selector_options(self.noise) and given.pop("potentials", False)
        select = make_selector(self.noise, **given | self.noise_options)
        if self.select_for not in TARGETS:
            raise ValueError(unknown("select_for", self.select_for, TARGETS))
        if self.residual_mean is not None and self.residual_mean not in CONDITIONAL_MEANS:
            raise ValueError(unknown("residual_mean", self.residual_mean, list(CONDITIONAL_MEANS)))
        if self.select_for == "action":
            if self.residual_mean:
                why = "nothing is predicted; add select_for=residual"
                raise ValueError(f"residual_mean={self.residual_mean}: {why}")
            return FittedOnTheWay(select, potentials=True) if fit else select
        if self.noise == PLAIN:
            raise ValueError("select_for=residual: noise=vanilla selects no noise for a sample; leave select_for out")
        return FittedOnTheWay(select, CONDITIONAL_MEANS[self.residual_mean or "linear"], potentials=fit)
