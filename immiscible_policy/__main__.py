"""Check what there is, and exchange checkpoints: `python -m immiscible_policy COMMAND key=value ...`."""

from __future__ import annotations

from immiscible_policy.cli import commands_text, dispatch, program

COMMANDS = {
    "doctor": ("immiscible_policy.commands.doctor", "check versions, GPU, data, a checkpoint; each with its cure"),
    "convert": ("immiscible_policy.commands.convert", "exchange checkpoints with Diffusion Policy and LeRobot"),
}
"""Module and one line of help of each command; a module is imported when its command is called."""
NOTE = " Training, evaluation and the rest have scripts of their own."


@program
def main(words: list[str]) -> int | None:
    """Run the command that the first word names."""
    return dispatch(words, COMMANDS, commands_text("immiscible_policy", COMMANDS, NOTE))


if __name__ == "__main__":
    main()
