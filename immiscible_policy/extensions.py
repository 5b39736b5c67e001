"""Parts that a word names: built in, registered by another package under an entry point, or by a dotted path."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from inspect import Parameter, getdoc, signature
from typing import Any

from immiscible_policy.cli import CommandError, one_line, unknown

FAMILY = re.compile(r"(.+[/:])[A-Z_]+")
"""What names a family of parts, and in it what the names of the family begin with."""


def find_factory(kind: str, group: str, name: str, built_in: Mapping[str, str]) -> Callable[..., Any]:
    """Import what a name stands for: a built-in one, one that a package registered, or `module:attribute`.

    Args:
        kind: The option that the name was given to, such as `task`; used in messages.
        group: Entry-point group in which other packages register theirs.
        name: What was asked for.
        built_in: `module:attribute` by name; these names cannot be registered over. `metaworld/NAME` is a family:
            of any name that begins with `metaworld/`, the rest is the first argument. So is `gym:ENV_ID`.

    Raises CommandError if the name is unknown, or what it stands for cannot be imported.
    """
    if not isinstance(name, str):
        raise CommandError(f"{kind} {name!r} is not a name; known: {', '.join(registered(group, built_in))}")
    for key, target in built_in.items():
        family = FAMILY.fullmatch(key)
        if family and name.startswith(family[1]) and name != family[1]:
            return partial(_load(kind, name, target), name.removeprefix(family[1]))
    named = built_in[name] if name in built_in else registered(group, built_in).get(name, name)
    if ":" not in named:
        raise CommandError(f"{unknown(kind, name, list(registered(group, built_in)))}, or {kind}=module:Class")
    return _load(kind, name, named)


def _load(kind: str, name: str, target: str) -> Callable[..., Any]:
    """Import `module:attribute`."""
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise CommandError(f"{kind}={name}: {error}; install it, or put its folder on PYTHONPATH") from None
    except (ImportError, AttributeError) as error:
        raise CommandError(f"{kind}={name}: cannot be imported ({one_line(error)})") from None
    if not callable(found):
        raise CommandError(f"{kind}={name}: {target} is a {type(found).__name__}, neither a class nor a function")
    return found


def registered(group: str, built_in: Mapping[str, str]) -> dict[str, str]:
    """`module:attribute` of what is built in and of what other packages register, by name."""
    return _installed(group, tuple(sys.path)) | dict(built_in)


@cache  # reading what is installed takes a twentieth of a second
def _installed(group: str, path: tuple[str, ...]) -> dict[str, str]:
    """`module:attribute` of what packages on this path register, by name."""
    return {point.name: point.value for point in entry_points(group=group)}


def build(kind: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call a factory with options, after refusing those that it does not take and the lack of those that it needs.

    Raises CommandError naming the option and those that it takes, or with what the factory itself refuses.
    """
    known = defaults(factory)
    takes = f"it takes {', '.join(known)}" if known else "it takes no options"
    for key, value in options.items():
        if key not in known:
            raise CommandError(f"{key}={value}: {kind}={name} has no {key}; {takes}")
    for key, default in known.items():
        if default is Parameter.empty and key not in options:
            raise CommandError(f"{kind}={name} needs {key}; {takes}")
    try:
        return factory(**options)
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise CommandError(f"{kind}={name} cannot be built with {given or 'no options'} ({one_line(error)})") from None


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """The options that a factory takes and their defaults, `inspect.Parameter.empty` where there is none."""
    parameters = signature(factory).parameters.values()
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind not in variadic}


def describe(factory: Callable[..., Any]) -> dict[str, str]:
    """What a factory's docstring says of each of its options (Google style, `Args:` or `Attributes:`), in one line."""
    section = re.search(
        r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", getdoc(getattr(factory, "func", factory)) or "", re.S | re.M
    )
    entries = re.split(r"^ {4}(?=\w+: )", section[1] if section else "", flags=re.M)
    return {key: " ".join(text.split()) for key, _, text in (entry.partition(": ") for entry in entries) if text}
