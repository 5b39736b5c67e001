"""Parts that a word names: built in, registered by another package under an entry point, or by a dotted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any

from immiscible_policy.cli import CommandError, one_line, unknown


def find_factory(kind: str, group: str, name: str, built_in: Mapping[str, str]) -> Callable[..., Any]:
    """Import what a name stands for.

    Args:
        kind: The option that the name was given to, such as `task`; used in messages.
        group: Entry-point group in which other packages register theirs.
        name: A built-in name, the name of an entry point, or `module:attribute`.
        built_in: `module:attribute` by name; these names cannot be registered over.

    Raises:
        CommandError: If the name is unknown, or what it stands for cannot be imported.
    """
    registered = {point.name: point.value for point in entry_points(group=group)} | dict(built_in)
    module, colon, attribute = registered.get(name, name).partition(":")
    if not colon:
        raise CommandError(f"{unknown(kind, name, list(registered))}, or {kind}=module:Class")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise CommandError(f"{kind}={name}: {error}; install it, or put its folder on PYTHONPATH") from None
    except (ImportError, AttributeError) as error:
        raise CommandError(f"{kind}={name}: cannot be imported ({one_line(error)})") from None


def require_options(kind: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a factory does not take, and the lack of those that it needs.

    Raises:
        CommandError: Naming the option and those that it takes.
    """
    parameters = signature(factory).parameters.values()
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    known = {parameter.name: parameter.default for parameter in parameters if parameter.kind not in variadic}
    takes = f"it takes {', '.join(known)}" if known else "it takes no options"
    for key, value in options.items():
        if key not in known:
            raise CommandError(f"{key}={value}: {kind}={name} has no {key}; {takes}")
    for key, default in known.items():
        if default is Parameter.empty and key not in options:
            raise CommandError(f"{kind}={name} needs {key}; {takes}")
