"""Check what there is, and exchange checkpoints: `python -m immiscible_policy COMMAND key=value ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from immiscible_policy import cli

COMMANDS = {
    "doctor": ("immiscible_policy.doctor", "check versions, GPU, data and a checkpoint; each finding with its cure"),
    "convert": ("immiscible_policy.plugins.bridge", "exchange checkpoints with Diffusion Policy and LeRobot"),
}
"""Module and one line of help of each command; a module is imported when its command is called."""


def dispatch(words: Sequence[str]) -> int | None:
    """Call the command that the first word names with the words after it.

    Raises:
        CommandError: If it is missing or unknown.
    """
    if not words:
        raise cli.CommandError(f"a command is missing; known: {', '.join(COMMANDS)}")
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(usage())
        return None
    if command not in COMMANDS:
        raise cli.CommandError(cli.unknown("command", command, list(COMMANDS)))
    return import_module(COMMANDS[command][0]).main(rest)


def usage() -> str:
    """List the commands."""
    lines = ["usage: python -m immiscible_policy COMMAND key=value ...", "", "commands:"]
    lines += [f"  {name:<8} {help_line}" for name, (_, help_line) in COMMANDS.items()]
    lines += ["", "`COMMAND --help` says what it takes. Training, evaluation and the rest have scripts of their own."]
    return "\n".join(lines)


def main() -> NoReturn:
    """Run a command and exit with its code; 2 after one line on stderr about a mistake."""
    cli.run(lambda _: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
