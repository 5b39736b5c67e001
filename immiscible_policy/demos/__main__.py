"""Fetch, check, describe, convert and make demonstrations: `python -m immiscible_policy.demos`."""

from __future__ import annotations

from immiscible_policy.cli import commands_text, dispatch, program

COMMANDS = {
    "download": ("immiscible_policy.commands.demos.download", "fetch a task's published demonstrations, verified"),
    "validate": ("immiscible_policy.commands.demos.validate", "say what is wrong with a store, and where"),
    "info": ("immiscible_policy.commands.demos.info", "describe a store, and draw it"),
    "convert": ("immiscible_policy.commands.demos.convert", "turn a LeRobot dataset into a store"),
    "export": ("immiscible_policy.commands.demos.export", "turn a store into a LeRobot dataset"),
    "make": ("immiscible_policy.commands.demos.make", "make demonstrations with a scripted expert"),
    "record": ("immiscible_policy.commands.demos.record", "record demonstrations by hand"),
}
"""Module and one line of help of each command; a module is imported when its command is called."""


@program
def main(words: list[str]) -> int | None:
    """Run the command that the first word names."""
    return dispatch(words, COMMANDS, commands_text("immiscible_policy.demos", COMMANDS))


if __name__ == "__main__":
    main()
