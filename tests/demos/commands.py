"""Run the command line in this process and look at what it prints."""

from typing import NamedTuple
from unittest.mock import patch

import pytest

from immiscible_policy.demos.__main__ import main


class Run(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Run:
    """Call `python -m immiscible_policy.demos` with these words."""
    capsys.readouterr()
    with patch("sys.argv", ["demos", *map(str, words)]), pytest.raises(SystemExit) as stop:
        main()
    return Run(int(stop.value.code or 0), *capsys.readouterr())


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Call it, insist on exit code 2 and a single line on stderr, and return that line."""
    result = run(capsys, *words)
    assert result.code == 2 and result.err.count("\n") == 1, result
    return result.err.strip()
