"""The command line of the demonstrations."""

from subprocess import CompletedProcess

from tests.training.helpers import here, refused


def run(*words: str) -> CompletedProcess[str]:
    """Call `python -m immiscible_policy.demos` with these words."""
    return here("-m", "immiscible_policy.demos", *words)


def mistake(*words: str) -> str:
    """Call it and return the one line that it refuses with."""
    return refused(run(*words))
