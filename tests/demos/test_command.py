"""The command line says what it can do, and one line about each mistake."""

import subprocess
import sys

import pytest

from immiscible_policy.demos.__main__ import COMMANDS
from tests.demos.commands import mistake, run


def test_help_lists_the_commands():
    result = run("--help")
    assert result.returncode == 0 and not result.stderr
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps(command):
    result = run(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: python -m immiscible_policy.demos {command} ")
    assert "options:" in result.stdout


def test_mistakes_are_one_line(tmp_path):
    assert mistake() == f"error: a command is missing; known: {', '.join(COMMANDS)}"
    assert "did you mean 'validate'?" in mistake("validat", "path=x")
    assert "path= is missing" in mistake("info")
    assert "unknown option 'pat'" in mistake("info", "pat=x")
    assert "does not exist" in mistake("info", f"path={tmp_path / 'nowhere'}")


def test_it_runs_as_a_module(tmp_path):
    words = [sys.executable, "-m", "immiscible_policy.demos", "info", f"path={tmp_path / 'nowhere'}"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and not result.stdout
