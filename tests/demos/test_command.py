"""The command line says what it can do, and one line about each mistake."""

import subprocess
import sys

import pytest

from immiscible_policy.demos.__main__ import COMMANDS
from tests.demos.commands import mistake, run


def test_help_lists_the_commands(capsys):
    result = run(capsys, "--help")
    assert result.code == 0 and not result.err
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps(capsys, command):
    result = run(capsys, command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: python -m immiscible_policy.demos {command} ")
    assert "options:" in result.out


def test_mistakes_are_one_line(capsys, tmp_path):
    assert mistake(capsys) == f"error: a command is missing; known: {', '.join(COMMANDS)}"
    assert "did you mean 'validate'?" in mistake(capsys, "validat", "path=x")
    assert "path= is missing" in mistake(capsys, "info")
    assert "unknown option 'pat'" in mistake(capsys, "info", "pat=x")
    assert "does not exist" in mistake(capsys, "info", f"path={tmp_path / 'nowhere'}")


def test_it_runs_as_a_module(tmp_path):
    words = [sys.executable, "-m", "immiscible_policy.demos", "info", f"path={tmp_path / 'nowhere'}"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and not result.stdout
