"""The selectors by name: built in, registered by another package, or `module:Class`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from immiscible_policy.extensions import build, defaults, find_factory
from immiscible_policy.noise.selector import Selector

GROUP = "immiscible_policy.selectors"
"""Entry-point group in which other packages register selectors."""
SELECTORS = {
    "vanilla": "immiscible_policy.noise.vanilla:Vanilla",
    "knn": "immiscible_policy.noise.knn:KNN",
    "sign": "immiscible_policy.noise.sign:Sign",
    "linear": "immiscible_policy.noise.linear:linear",
    "idp26": "immiscible_policy.noise.idp26:idp26",
    "c2ot": "immiscible_policy.noise.c2ot:c2ot",
}
"""The built-in selectors."""


def find_selector(name: str) -> Callable[..., Selector]:
    """What builds a selector from its options: one of `SELECTORS`, an entry point, or `module:Class`.

    Raises:
        ValueError: If the name is unknown, or what it stands for cannot be imported.
    """
    return find_factory("noise", GROUP, name, SELECTORS)


def selector_options(name: str) -> tuple[str, ...]:
    """Names of the options that a selector takes."""
    return tuple(defaults(find_selector(name)))


def make_selector(name: str, /, **options: Any) -> Selector:
    """Build a selector from its name and options, for example `make_selector("knn", k=4)`; `knn` alone means k=2.

    Raises:
        ValueError: If the name is unknown, an option is missing, not the selector's or of an unusable value, or if
            what was built is not a selector.
    """
    select = build("noise", name, find_selector(name), options)
    try:
        signature(select).bind(None, condition=None, mask=None, step=None, generator=None)
    except (TypeError, ValueError):
        kind, call = type(select).__name__, "select(x, condition=, mask=, step=, generator=)"
        raise ValueError(f"noise={name}: {kind} is not a selector; it must be called as {call}") from None
    return select
