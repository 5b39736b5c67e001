"""Mouse teleoperation without a mouse: events go in, episodes come out."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from immiscible_envs import recorder, teleop
from immiscible_envs.geometry import keypoints
from immiscible_envs.recorder import Recorder
from immiscible_envs.rendering import pygame, render_state
from immiscible_envs.simulation import Simulation
from immiscible_envs.teleop import Session, main, record
from tests.conftest import ROOT

GOAL_WITHIN_REACH = np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4 + 0.01])


@pytest.fixture(autouse=True)
def no_window_and_no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(recorder.os, "fsync", lambda descriptor: None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "demos.zarr"


def move(session, point):
    session.handle(SimpleNamespace(type=pygame.MOUSEMOTION, pos=tuple(np.round(point).astype(int).tolist())))


def press(session, key):
    session.handle(SimpleNamespace(type=pygame.KEYDOWN, key=key))


def agent(session):
    return session._simulation.state[:2]


def drag(session, steps):
    """Take hold of the agent and pull it right, one pixel more every step."""
    start = agent(session)
    for step in range(steps):
        move(session, start + (step, 0))
        session.tick()


def read(path):
    return zarr.open_group(str(path), mode="r")


def ends(path):
    return read(path)["meta/episode_ends"][:].tolist()


def test_nothing_moves_before_the_pointer_touches_the_agent(path):
    session = Session(Recorder(path))
    start = agent(session)
    session.tick()
    move(session, start + (40, 0))
    session.tick()
    assert not session.held and (agent(session) == start).all()
    move(session, start + (14, 0))
    session.tick()
    assert session.held and agent(session)[0] > start[0]
    move(session, start + (100, 0))
    session.tick()
    assert session.held  # once held, the agent follows wherever the pointer goes


def test_saved_rows_are_what_happened(path):
    session = Session(Recorder(path))
    start = session._simulation.state
    drag(session, 12)
    press(session, pygame.K_s)
    data = read(path)["data"]
    assert ends(path) == [12]
    replay = Simulation()
    replay.reset(start)
    for row in range(12):
        state = data["state"][row]
        np.testing.assert_array_equal(state, replay.state.astype(np.float32))
        np.testing.assert_array_equal(data["action"][row], np.round(start[:2] + (row, 0)))
        np.testing.assert_array_equal(data["keypoint"][row], keypoints(replay.state[2:]).astype(np.float32))
        np.testing.assert_array_equal(data["img"][row], render_state(replay.state))
        replay.step(data["action"][row])
        assert data["n_contacts"][row] == replay.n_contacts


def test_success_saves_and_begins_the_next_episode(path, monkeypatch):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    session = Session(Recorder(path))
    drag(session, 1)
    assert ends(path) == [1]
    assert not session.held and session.running and "episode 1, step 0" in session.title


def test_retry_begins_the_same_episode_again_and_records_nothing_of_it(path):
    session = Session(Recorder(path))
    start = session._simulation.state
    drag(session, 5)
    press(session, pygame.K_r)
    np.testing.assert_array_equal(session._simulation.state, start)
    assert not path.exists()
    drag(session, 3)
    press(session, pygame.K_s)
    assert ends(path) == [3]


def test_save_without_steps_does_nothing(path):
    session = Session(Recorder(path))
    press(session, pygame.K_s)
    assert not path.exists() and session.running


def test_quitting_keeps_saved_episodes_and_drops_the_unfinished_one(path):
    session = Session(Recorder(path))
    drag(session, 4)
    press(session, pygame.K_s)
    drag(session, 9)
    press(session, pygame.K_q)
    session.tick()
    assert not session.running and ends(path) == [4]


def test_a_later_session_goes_on_with_the_next_start(path):
    first = Session(Recorder(path), seed=7)
    drag(first, 2)
    press(first, pygame.K_s)
    second = Session(Recorder(path), seed=7)
    np.testing.assert_array_equal(second._simulation.state, first._simulation.state)
    assert (Session(Recorder(path), seed=8)._simulation.state != first._simulation.state).any()
    drag(second, 3)
    press(second, pygame.K_s)
    assert ends(path) == [2, 5]


def queue_of(frames):
    """Stand for pygame's event queue: hand out one list of events per frame, then break down."""
    left = iter(frames)
    return lambda: next(left)


def event(kind, **attributes):
    return pygame.event.Event(kind, **attributes)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(teleop, "CONTROL_HZ", 10_000)


def test_record_runs_the_window_until_the_person_quits(path, monkeypatch, fast):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    hold = event(pygame.MOUSEMOTION, pos=(60, 60), rel=(0, 0), buttons=(0, 0, 0))
    frames = [[], [hold], [], [event(pygame.QUIT)]]
    monkeypatch.setattr(pygame.event, "get", queue_of(frames))
    assert record(path) == 1
    assert pygame.display.get_surface() is None


def test_a_crash_in_the_window_loses_no_finished_episode(path, monkeypatch, fast):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    hold = event(pygame.MOUSEMOTION, pos=(60, 60), rel=(0, 0), buttons=(0, 0, 0))
    monkeypatch.setattr(pygame.event, "get", queue_of([[hold], [hold], [hold]]))
    with pytest.raises(StopIteration):  # the queue breaks down after three frames
        record(path)
    assert ends(path) == [1, 2, 3]
    assert pygame.display.get_surface() is None


def test_real_events_reach_the_session(path, fast):
    pygame.display.init()
    pygame.display.set_mode((10, 10))
    pygame.event.post(event(pygame.KEYDOWN, key=pygame.K_q))
    assert record(path) == 0
    assert ends(path) == []


def test_a_store_that_cannot_be_written_is_noticed_before_anything_is_demonstrated(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(pygame.event, "get", queue_of([]))
    with pytest.raises(OSError, match="file"):
        record(tmp_path / "file" / "demos.zarr")
    assert pygame.display.get_surface() is None


def test_without_a_display_nothing_is_created(path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "none such")
    with pytest.raises(OSError, match="there is no display"):
        record(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out= is missing"),
        (["demos.zarr"], "'demos.zarr' is not out=PATH or seed=NUMBER"),
        (["out="], "'out=' is not"),
        (["out=a.zarr", "sed=1"], "'sed=1' is not"),
        (["out=a.zarr", "seed=-1"], "seed=-1: not a whole number"),
        (["out=a.zarr", "out=b.zarr"], "out= is given twice"),
        (["seed=1", "seed=1", "out=a.zarr"], "seed= is given twice"),
    ],
    ids=str,
)
def test_bad_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        main(words)


def command(*words):
    arguments = [sys.executable, "-m", "immiscible_envs.teleop", *words]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


def test_the_command_refuses_in_one_line_with_code_2_and_creates_nothing(tmp_path):
    result = command(f"out={tmp_path}")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_shows_keys_and_examples(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert "out=demos.zarr" in shown and all(key in shown for key in ("retry", "save", "quit"))
