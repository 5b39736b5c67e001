"""Files that anybody may have written: read with a bound on their size, refused in one line that names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from immiscible_policy.cli import one_line

MOST_BYTES = 64 * 2**20
"""Files of settings and metadata are smaller."""
LARGEST = 10**7
"""The largest whole number, in magnitude, in the description of a model: no chain is longer, no layer wider."""
Described = TypeVar("Described")


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader without aliases, by which a few lines can stand for gigabytes; no file of ours has some."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def read_text(path: Path) -> str:
    """The content of a file; a ValueError if it is not text."""
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore it") from None


def read_json(file: Path, cure: str = "restore it, or delete it") -> dict[str, Any]:
    """Read a file with one JSON object; a ValueError with the cure if it is something else, or cannot be read."""
    return _mapping(file, json.loads, cure)


def read_yaml(file: Path, cure: str = "restore it, or delete it") -> dict[str, Any]:
    """Read a YAML file of keys and values without aliases; a ValueError as `read_json`."""
    return _mapping(file, lambda text: deepcopy(_parse_yaml(text)), cure)


@lru_cache(16)
def _parse_yaml(text: str) -> Any:
    """What a text says; a run's settings are read again and again."""
    return yaml.load(text, _PlainLoader)  # noqa: S506  # a SafeLoader


def require_kinds(file: Path, content: Mapping[str, Any], kinds: Mapping[str, Any], cure: str) -> None:
    """Refuse a value that is there and of another type than `kinds` says, by a ValueError; True is not a number."""
    for key, kind in kinds.items():
        if key in content and not _is(content[key], kind):
            raise ValueError(f"{file} is damaged ({key} is {str(content[key])[:40]!r}); {cure}")


def described(kind: type[Described], values: Mapping[str, Any]) -> Described:
    """A dataclass of plain values from what JSON has of it, lists as tuples; a TypeError names what does not fit."""
    hints, plain = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            value = values[field.name]
            plain[field.name] = tuple(value) if isinstance(value, list) else value
            if not _is(plain[field.name], hints[field.name], LARGEST):
                raise TypeError(f"{field.name} is {str(value)[:40]!r}")
    if unknown := values.keys() - plain.keys():
        raise TypeError(f"{min(unknown)} is unknown")
    return kind(**plain)


def _mapping(file: Path, parse: Any, cure: str) -> dict[str, Any]:
    """The mapping that a file's text is parsed to."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES / 2**20:.0f} MB")
        content = parse(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it has no keys and values")
        return content
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); {cure}") from None
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({one_line(error)[:200]}); {cure}") from None


def _is(value: Any, kind: Any, largest: int = 10**18) -> bool:
    """Whether a value is of a type: of one of a union, of a tuple's items too; whole numbers are floats as well."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, one, largest) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0], largest) for item in value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return abs(value) <= largest if whole else kind is float and isinstance(value, float)
    return value is None if kind is NoneType else isinstance(value, kind)
