"""What every command line shares: `key=value` words, one `--help`, errors in one line, exit code 2."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn


class CommandError(ValueError):
    """A mistake in the user's words; its message is the one line that the user sees."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a command in order; `number` is the signal's, the message what the user sees."""

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class Option:
    """One `key=value` word of a command."""

    type: Callable[[str], Any]  # converts the text: str, int, float, bool, Path, or what raises ValueError
    default: Any  # value when the word is absent; `REQUIRED` when there is none
    help: str  # one line for `--help`
    synonym: str | None = None  # another spelling of its key
    section: str = "options"  # its title in `--help`


REQUIRED = object()
"""Default of an option that must be given."""
UNSHOWN = object()
"""Default that `--help` does not show."""
MOST_NAMED = 12
"""So many names are listed in a message; of more, the nearest."""


EXTRAS = {
    "train": (
        "gymnasium", "numba", "pygame", "pymunk", "diffusers", "hydra", "imageio_ffmpeg", "jinja2", "markupsafe",
        "matplotlib", "numcodecs", "packaging", "PIL", "yaml", "rich", "safetensors", "torchdiffeq", "zarr",
    ),
    "sd": ("transformers",),
}  # fmt: skip
"""What each extra of the project brings, by the names that Python imports."""


def boolean(text: str) -> bool:
    """Read `true` or `false` (also 1/0, yes/no)."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("use true or false")
    return known[text.lower()]


def whole(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` to `most`, beyond which a command would never end."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?\d{1,20}", text, flags=re.ASCII) else None
        if number is None or not least <= number <= most:
            raise ValueError("not a whole number" if number is None else f"needs {least:,} to {most:,}")
        return number

    return read


COUNT = whole(1, 10**6)
"""Reads how many there are to be of something."""
SEED = whole(0, 2**63 - 1)
"""Reads the seed of something random."""


def parse(argv: Sequence[str], options: Mapping[str, Option], usage: str) -> dict[str, Any]:
    """Turn `key=value` words into every option's typed value, defaults filled in; `usage` is the head of `--help`.

    Raises:
        CommandError: For an unknown key, a bad value, a repeated or a missing word.
        SystemExit: With code 0 after printing help.
    """
    if asks_for_help(argv):
        print(help_text(usage, {"options": options}))
        raise SystemExit(0)
    given = split_words(argv, {option.synonym: key for key, option in options.items() if option.synonym})
    for key in given:
        if key not in options:
            raise CommandError(unknown("option", key, list(options)))
    for key, option in options.items():
        if key not in given and option.default is REQUIRED:
            raise CommandError(f"{key}= is missing ({option.help})")
    return {key: _convert(key, given[key], o.type) if key in given else o.default for key, o in options.items()}


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether one of the words asks for help."""
    return any(word in ("-h", "--help", "help") for word in words)


def split_words(words: Sequence[str], synonyms: Mapping[str, str] | None = None) -> dict[str, str]:
    """The text of every `key=value` word, by key; synonyms are other spellings of some keys.

    Raises CommandError for a word of another form, a repeated or an empty one.
    """
    given: dict[str, str] = {}
    for word in words:
        typed, equals, text = word.partition("=")
        key = (synonyms or {}).get(typed, typed)
        if not equals:
            raise CommandError(f"'{word}' is not key=value; see --help")
        if key in given:
            raise CommandError(f"{typed}= is given twice" + (f" (it is {key}=)" if typed != key else ""))
        if not text:
            raise CommandError(f"{typed}= is empty; leave it out to take the default")
        given[key] = text
    return given


def parse_range(key: str, text: str) -> list[int]:
    """Read whole numbers written as `5`, `0..2` (both ends included) or `0,3,7`, or a mix of these.

    Raises CommandError if the text is none of these, a range runs backwards, or a number repeats.
    """
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,18})(?:\.\.(\d{1,18}))?", part)
        if not match:
            raise CommandError(f"{key}={text}: write 5, 0..2 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise CommandError(f"{key}={text}: the range {part} runs backwards; write {last}..{first}")
        if last - first >= 100_000:
            raise CommandError(f"{key}={text}: the range {part} has {last - first + 1:,} numbers; at most 100,000")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise CommandError(f"{key}={text}: a number is given twice")
    return numbers


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which one may have been meant, and which are known or where they are listed."""
    few = len(known) <= MOST_NAMED
    close = [f"'{match}'" for match in difflib.get_close_matches(name, known, n=1 if few else 3)]
    hint = f" did you mean {' or '.join(close)}?" if close else ""
    return f"unknown {what} '{name}';{hint} " + (f"known: {', '.join(known)}" if few else "see --help")


def help_text(usage: str, sections: Mapping[str, Mapping[str, Option]]) -> str:
    """Lay out a command's usage and its options, section by section."""
    lines = [as_called(usage).rstrip()]
    for title, options in sections.items():
        width = max((len(key) for key in options), default=0)
        lines += ["", f"{title}:"]
        for key, option in options.items():
            default = "required" if option.default is REQUIRED else f"default {_show(option.default)}"
            note = "" if option.default is UNSHOWN or option.default is None else f" ({default})"
            note += f" (also {option.synonym}=)" if option.synonym else ""
            first, later = f"  {key:<{width}}  ", " " * (width + 4)
            lines += textwrap.wrap(f"{option.help}{note}", 120, initial_indent=first, subsequent_indent=later)
    return "\n".join(lines)


def as_called(usage: str) -> str:
    """A usage whose first command is its own, "python SCRIPT"; an installed command that was called replaces it."""
    called, script = Path(sys.argv[0]).name, re.search(r"^(?:usage: | +)(python (?:-m )?\S+)", usage, re.M)
    if script is None or not re.fullmatch(r"immiscible[a-z-]*", called):
        return usage
    return re.sub(rf"{re.escape(script[1])}(?!\S)", called, usage)


Commands = Mapping[str, tuple[str, str]]
"""By name, the module of a command and one line of help; a module is imported when its command is called."""


def dispatch(words: Sequence[str], commands: Commands, usage: str) -> int | None:
    """Call the `main` of the command that the first word names with the words after it; `--help` prints the usage.

    Raises CommandError if the command is missing or unknown.
    """
    if not words:
        raise CommandError(f"a command is missing; known: {', '.join(commands)}")
    command, *rest = words
    if asks_for_help([command]):
        print(usage)
        return None
    if command not in commands:
        raise CommandError(unknown("command", command, list(commands)))
    return import_module(commands[command][0]).main(rest)


def commands_text(program: str, commands: Commands, note: str = "") -> str:
    """List a program's commands; the note follows what says how to learn more."""
    usage = f"usage: python -m {program} COMMAND key=value ..."
    rows = {name: Option(str, UNSHOWN, help_line) for name, (_, help_line) in commands.items()}
    return f"{help_text(usage, {'commands': rows})}\n\n`COMMAND --help` lists its options.{note}"


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call a command's main function and turn a user's mistake into one line on stderr and exit code 2.

    Modules of the user's own are found in the working directory, also by installed commands.
    """
    if "" not in sys.path:
        sys.path.append("")
    try:
        code = main(sys.argv[1:])
    except BrokenPipeError:  # whoever reads has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + getattr(signal, "SIGPIPE", 13)) from None
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        raise SystemExit(128 + getattr(stop, "number", signal.SIGINT)) from None
    raise SystemExit(code or 0)


def program(main: Callable[[list[str]], int | None]) -> Callable[..., int | None]:
    """Make a main function a program: called without words, it reads those of the process and exits as `run` does."""

    @wraps(main)
    def entry(words: list[str] | None = None) -> int | None:
        return run(main) if words is None else main(words)

    return entry


def one_line(error: BaseException) -> str:
    """The error's message on a single line."""
    return " ".join(str(error).split()) or type(error).__name__


def expanded(text: str) -> Path:
    """A path as typed, with `~` and `~NAME` as home directories; a ValueError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {Path(text).parts[0].removeprefix('~')}") from None


def shipped(directory: str) -> Path:
    """Where a directory of the project lies: in the package where that is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / directory
    return installed if installed.is_dir() else package.parent / directory


def require_extra(extra: str) -> None:
    """End a program whose extra, one of `EXTRAS`, is not installed: one line with the command that installs it.

    Raises:
        SystemExit: With code 2, if a module of the extra is missing.
    """
    missing = next((module for module in EXTRAS[extra] if find_spec(module) is None), None)
    if missing:
        print(f"error: {missing} is not installed: pip install 'immiscible-policy[{extra}]'", file=sys.stderr)
        raise SystemExit(2)


def require_new(key: str, path: Path) -> None:
    """Refuse a path that exists, or cannot be created, before any work is done for it; raises CommandError."""
    if path.exists():
        raise CommandError(f"{key}={path} exists already; choose another path or remove it first")
    require_writable(key, path)


def require_writable(key: str, path: Path) -> None:
    """Refuse a path that cannot be created, before any work is done for it.

    Raises CommandError if it, or a parent, is a broken link, or if its nearest existing parent is not a
    directory, or one that is not writable.
    """
    parents = path.absolute().parents or [path]
    for place in (path.absolute(), *parents):
        if place.is_symlink() and not place.exists():
            raise CommandError(f"{key}={path}: {place} is a broken link")
    parent = next(folder for folder in parents if folder.exists())
    if not parent.is_dir():
        raise CommandError(f"{key}={path}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK) or parent.is_relative_to("/proc"):
        raise CommandError(f"{key}={path}: {parent} is not writable")


def _convert(key: str, text: str, to: Callable[[str], Any]) -> Any:
    if key == "out" and to is Path and set(text) <= set("/.") and os.path.realpath(text) == "/":
        raise CommandError(f"out={text}: the root of all files; name a directory below it")
    try:
        return boolean(text) if to is bool else expanded(text) if to is Path else to(text)
    except ValueError as error:
        kind = {int: "a whole number", float: "a number"}.get(to)  # type: ignore[call-overload]
        raise CommandError(f"{key}={text}: not {kind}" if kind else f"{key}={text}: {error}") from None


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
