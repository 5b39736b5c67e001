"""The command-line habits that every command shares: `key=value` words, one-line errors, exit code 2."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn


class CommandError(ValueError):
    """A mistake in what the user asked for; its message is the one line that the user sees."""


@dataclass(frozen=True)
class Option:
    """One `key=value` word of a command.

    Attributes:
        type: Converts the text; one of str, int, float, bool, Path, or any callable that raises ValueError.
        default: Value when the word is absent; `REQUIRED` when there is none.
        help: One line for `--help`.
    """

    type: Callable[[str], Any]
    default: Any
    help: str


REQUIRED = object()


def boolean(text: str) -> bool:
    """Read `true` or `false` (also 1/0, yes/no)."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("use true or false")
    return known[text.lower()]


def parse(argv: Sequence[str], options: Mapping[str, Option], usage: str) -> dict[str, Any]:
    """Turn `key=value` words into typed values.

    Args:
        argv: Words after the command's name.
        options: What the command knows, by key.
        usage: Text above the list of options in `--help`.

    Returns:
        Every option's value, defaults filled in.

    Raises:
        CommandError: For an unknown key, a bad value, a repeated or a missing word.
        SystemExit: With code 0 after printing help.
    """
    if any(word in ("-h", "--help", "help") for word in argv):
        print(help_text(usage, options))
        raise SystemExit(0)
    values: dict[str, Any] = {}
    for word in argv:
        key, equals, text = word.partition("=")
        if not equals:
            raise CommandError(f"'{word}' is not key=value; known keys: {', '.join(options)}")
        if key not in options:
            raise CommandError(unknown("key", key, list(options)))
        if key in values:
            raise CommandError(f"{key}= is given twice")
        values[key] = _convert(key, text, options[key].type)
    for key, option in options.items():
        if key not in values and option.default is REQUIRED:
            raise CommandError(f"{key}= is missing ({option.help})")
        values.setdefault(key, option.default)
    return values


def parse_range(key: str, text: str) -> list[int]:
    """Read whole numbers written as `5`, `0..2` (both ends included) or `0,3,7`, or a mix of these.

    Raises:
        CommandError: If the text is none of these, a range runs backwards, or a number repeats.
    """
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)
        if not match:
            raise CommandError(f"{key}={text}: write 5, 0..2 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise CommandError(f"{key}={text}: the range {part} runs backwards; write {last}..{first}")
        if last - first >= 100_000:
            raise CommandError(f"{key}={text}: the range {part} holds {last - first + 1:,} numbers; at most 100,000")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise CommandError(f"{key}={text}: a number is given twice")
    return numbers


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which ones are known, and which one may have been meant."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean '{close[0]}'?" if close else ""
    return f"unknown {what} '{name}';{hint} known: {', '.join(known)}"


def help_text(usage: str, options: Mapping[str, Option]) -> str:
    """Format a command's usage and its options."""
    width = max((len(key) for key in options), default=0)
    lines = [usage.rstrip(), "", "options:"]
    for key, option in options.items():
        default = "required" if option.default is REQUIRED else f"default {_show(option.default)}"
        lines.append(f"  {key:<{width}}  {option.help} ({default})")
    return "\n".join(lines)


Commands = Mapping[str, tuple[str, str]]
"""By name, the module of a command and one line of help; a module is imported when its command is called."""


def dispatch(words: Sequence[str], commands: Commands, usage: str) -> int | None:
    """Call the `main` of the command that the first word names with the words after it.

    Args:
        words: Words after the program's name.
        commands: The commands.
        usage: What `--help` prints, see `commands_text`.

    Raises:
        CommandError: If the command is missing or unknown.
    """
    if not words:
        raise CommandError(f"a command is missing; known: {', '.join(commands)}")
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(usage)
        return None
    if command not in commands:
        raise CommandError(unknown("command", command, list(commands)))
    return import_module(commands[command][0]).main(rest)


def commands_text(program: str, commands: Commands, note: str = "") -> str:
    """List a program's commands; the note follows what says how to learn more."""
    width = max(map(len, commands))
    lines = [f"usage: python -m {program} COMMAND key=value ...", "", "commands:"]
    lines += [f"  {name:<{width}}  {help_line}" for name, (_, help_line) in commands.items()]
    return "\n".join([*lines, "", f"`COMMAND --help` says what it takes.{note}"])


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call a command's main function and turn a user's mistake into one line on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)


def one_line(error: BaseException) -> str:
    """The error's message on a single line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_writable(key: str, path: Path) -> None:
    """Refuse a path that cannot be created, before any work is done for it.

    Raises:
        CommandError: If its nearest existing parent is no directory, or one that may not be written.
    """
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir():
        raise CommandError(f"{key}={path}: {parent} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK) or parent.is_relative_to("/proc"):
        raise CommandError(f"{key}={path}: {parent} may not be written")


def _convert(key: str, text: str, to: Callable[[str], Any]) -> Any:
    if not text:
        raise CommandError(f"{key}= is empty; leave the word out to take the default")
    try:
        return boolean(text) if to is bool else Path(text).expanduser() if to is Path else to(text)
    except ValueError as error:
        kind = {int: "a whole number", float: "a number"}.get(to)  # type: ignore[call-overload]
        raise CommandError(f"{key}={text}: not {kind}" if kind else f"{key}={text}: {error}") from None


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
