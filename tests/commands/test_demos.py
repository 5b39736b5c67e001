"""The commands that make and record demonstrations."""

import subprocess
import sys

import numpy as np
import pytest

from immiscible_envs import teleop
from immiscible_envs.rendering import pygame
from immiscible_policy.cli import CommandError
from immiscible_policy.commands.demos import make, record
from immiscible_policy.demos.store import content_hash, open_store
from tests.demos.stores import PUSHT

GOAL_WITHIN_REACH = np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4 + 0.01])


def test_make_writes_a_store(tmp_path, capsys):
    out = tmp_path / "two.zarr"
    make.main([f"out={out}", "episodes=2", "seed=1"])
    assert open_store(out).n_episodes == 2
    assert content_hash(out) in capsys.readouterr().out


def test_make_refuses_before_it_works(tmp_path):
    with pytest.raises(CommandError, match="exists already"):
        make.main([f"out={tmp_path}"])
    with pytest.raises(ValueError, match="episodes=0"):
        make.main([f"out={tmp_path / 'x'}", "episodes=0"])
    assert not (tmp_path / "x").exists()


@pytest.fixture
def mouse(monkeypatch):
    """A person who covers the goal once and quits."""
    monkeypatch.setattr(teleop, "CONTROL_HZ", 10_000)
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    hold = pygame.event.Event(pygame.MOUSEMOTION, pos=(60, 60), rel=(0, 0), buttons=(0, 0, 0))
    monkeypatch.setattr(pygame.event, "get", iter([[hold], [pygame.event.Event(pygame.QUIT)]] * 2).__next__)


def test_record_makes_a_store_and_continues_it(tmp_path, mouse, capsys):
    out = tmp_path / "mine.zarr"
    for count in (1, 2):
        record.main([f"out={out}"])
        assert f"{count} episodes in {out}" in capsys.readouterr().out
        demos = open_store(out)
        assert demos.episode_ends.tolist() == list(range(1, count + 1))


def test_record_refuses_what_it_did_not_make(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", PUSHT.demonstrations()):
        with pytest.raises(CommandError, match="is not a store that this command made; give a new path"):
            record.main([f"out={path}"])
    with pytest.raises(CommandError, match="notes.txt is not a directory"):
        record.main([f"out={tmp_path / 'notes.txt' / 'demos.zarr'}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out= is missing"),
        (["out=a.zarr", "sed=1"], "unknown option 'sed'"),
        (["out=a.zarr", "seed=-1"], "seed=-1: needs 0 to"),
    ],
)
def test_record_refuses_bad_words(words, message):
    with pytest.raises(CommandError, match=message):
        record.main(words)


def test_without_a_display_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "none such")
    with pytest.raises(OSError, match="there is no display"):
        record.main([f"out={tmp_path / 'a.zarr'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_with_code_2(tmp_path):
    command = [sys.executable, "-m", "immiscible_policy.demos", "record", f"out={tmp_path}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
