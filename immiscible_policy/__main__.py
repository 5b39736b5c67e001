"""Check what there is, and exchange checkpoints: `python -m immiscible_policy COMMAND key=value ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from immiscible_policy import cli

COMMANDS = {
    "doctor": ("immiscible_policy.commands.doctor", "check versions, GPU, data, a checkpoint; each with its cure"),
    "convert": ("immiscible_policy.commands.convert", "exchange checkpoints with Diffusion Policy and LeRobot"),
}
"""Module and one line of help of each command; a module is imported when its command is called."""


def dispatch(words: Sequence[str]) -> int | None:
    """Call the command that the first word names with the words after it.

    Raises:
        CommandError: If it is missing or unknown.
    """
    return cli.dispatch(words, COMMANDS, usage())


def usage() -> str:
    """List the commands."""
    note = " Training, evaluation and the rest have scripts of their own."
    return cli.commands_text("immiscible_policy", COMMANDS, note)


def main() -> NoReturn:
    """Run a command and exit with its code; 2 after one line on stderr about a mistake."""
    cli.run(lambda _: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
