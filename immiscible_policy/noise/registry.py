"""The selectors by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from immiscible_policy.noise.assignment import Assignment
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
    "linear": Assignment,
}


def selector_options(name: str) -> tuple[str, ...]:
    """Names of the options that a selector takes.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in SELECTORS:
        close = difflib.get_close_matches(name, SELECTORS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ";"
        raise ValueError(f"unknown noise '{name}'{hint} known: {', '.join(SELECTORS)}")
    return tuple(field.name for field in fields(SELECTORS[name]))  # type: ignore[arg-type]


def make_selector(name: str, /, **options: Any) -> Selector:
    """Build a selector from its name and options, for example `make_selector("knn", k=4)`.

    Args:
        name: `vanilla`, `knn` or `linear`.
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
