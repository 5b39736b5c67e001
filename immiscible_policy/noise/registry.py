"""The selectors by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from immiscible_policy.noise.assignment import c2ot, idp26, linear
from immiscible_policy.noise.knn import KNN
from immiscible_policy.noise.vanilla import Vanilla


class Selector(Protocol):
    """A drop-in for `torch.randn_like(x)`: clean samples in, noise of the same shape, dtype and device out."""

    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose noise for x (B, ...)."""
        ...


SELECTORS: dict[str, Callable[..., Selector]] = {
    "vanilla": Vanilla,
    "knn": KNN,
    "linear": linear,
    "idp26": idp26,
    "c2ot": c2ot,
}


def selector_options(name: str) -> tuple[str, ...]:
    """Names of the options that a selector takes.

    Raises:
        ValueError: If the name is unknown.
    """
    if not isinstance(name, str):
        raise ValueError(f"noise {name!r} is no name; known: {', '.join(SELECTORS)}")
    if name not in SELECTORS:
        close = difflib.get_close_matches(name, SELECTORS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ";"
        raise ValueError(f"unknown noise '{name}'{hint} known: {', '.join(SELECTORS)}")
    return tuple(signature(SELECTORS[name]).parameters)


def make_selector(name: str, /, **options: Any) -> Selector:
    """Build a selector from its name and options, for example `make_selector("knn", k=4)`.

    Args:
        name: `vanilla`, `knn`, `linear`, `idp26` or `c2ot`.
        **options: What that selector takes; `knn` alone means k=2.

    Raises:
        ValueError: If the name is unknown, an option is not the selector's, or its value is unusable.
    """
    known = selector_options(name)
    for option, value in options.items():
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise ValueError(f"{option}={value}: noise={name} has no {option}; {takes}")
    return SELECTORS[name](**options)
