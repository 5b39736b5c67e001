"""Mouse teleoperation without a mouse: events go in, episodes come out."""

from types import SimpleNamespace

import numpy as np
import pytest

from immiscible_envs import teleop
from immiscible_envs.geometry import keypoints
from immiscible_envs.rendering import pygame, render_state
from immiscible_envs.simulation import Simulation
from immiscible_envs.teleop import Session, run_session

GOAL_WITHIN_REACH = np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4 + 0.01])


@pytest.fixture
def saved():
    """What a session saves, episode by episode."""
    return []


def lengths(saved):
    return [len(episode["state"]) for episode in saved]


def move(session, point):
    session.handle(SimpleNamespace(type=pygame.MOUSEMOTION, pos=tuple(np.round(point).astype(int).tolist())))


def press(session, key):
    session.handle(SimpleNamespace(type=pygame.KEYDOWN, key=key))


def agent(session):
    return session._recording.state[:2]


def drag(session, steps):
    """Take hold of the agent and pull it right, one pixel more every step."""
    start = agent(session)
    for step in range(steps):
        move(session, start + (step, 0))
        session.tick()


def test_nothing_moves_before_the_pointer_touches_the_agent(saved):
    session = Session(saved.append)
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


def test_the_window_says_what_to_do_below_the_canvas(saved):
    session = Session(saved.append)
    before = session.picture
    drag(session, 1)
    assert before.shape == session.picture.shape == (568, 512, 3)
    advice, keys = before[512:540], before[540:]
    assert (advice < 128).any() and (keys < 128).any() and (before[512:, -8:] == 255).all()
    assert not np.array_equal(advice, session.picture[512:540])  # the agent is held by now


def test_saved_rows_are_what_happened(saved):
    session = Session(saved.append)
    start = session._recording.state
    drag(session, 12)
    press(session, pygame.K_s)
    (data,) = saved
    assert lengths(saved) == [12]
    replay = Simulation()
    replay.reset(start)
    for row in range(12):
        np.testing.assert_array_equal(data["state"][row], replay.state)
        np.testing.assert_array_equal(data["action"][row], np.round(start[:2] + (row, 0)))
        np.testing.assert_array_equal(data["keypoint"][row], keypoints(replay.state[2:]).astype(np.float32))
        np.testing.assert_array_equal(data["img"][row], render_state(replay.state))
        replay.step(data["action"][row])
        assert data["n_contacts"][row] == replay.n_contacts


def test_success_saves_and_begins_the_next_episode(saved, monkeypatch):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    session = Session(saved.append)
    drag(session, 1)
    assert lengths(saved) == [1]
    assert not session.held and session.running and "episode 1   step 0" in session.status


def test_retry_begins_the_same_episode_again_and_records_nothing_of_it(saved):
    session = Session(saved.append)
    start = session._recording.state
    drag(session, 5)
    press(session, pygame.K_r)
    np.testing.assert_array_equal(session._recording.state, start)
    assert not saved
    drag(session, 3)
    press(session, pygame.K_s)
    assert lengths(saved) == [3]


def test_save_without_steps_does_nothing(saved):
    session = Session(saved.append)
    press(session, pygame.K_s)
    assert not saved and session.running


def test_quitting_keeps_saved_episodes_and_drops_the_unfinished_one(saved):
    session = Session(saved.append)
    drag(session, 4)
    press(session, pygame.K_s)
    drag(session, 9)
    press(session, pygame.K_q)
    session.tick()
    assert not session.running and lengths(saved) == [4]


def test_a_later_session_goes_on_with_the_next_start(saved):
    first = Session(saved.append, seed=7)
    drag(first, 2)
    press(first, pygame.K_s)
    second = Session(saved.append, episode=1, seed=7)
    np.testing.assert_array_equal(second._recording.state, first._recording.state)
    assert (Session(saved.append, episode=1, seed=8)._recording.state != first._recording.state).any()
    drag(second, 3)
    press(second, pygame.K_s)
    assert lengths(saved) == [2, 3] and second.episode == 2


def queue_of(frames):
    """Stand for pygame's event queue: hand out one list of events per frame, then break down."""
    left = iter(frames)
    return lambda: next(left)


def event(kind, **attributes):
    return pygame.event.Event(kind, **attributes)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(teleop, "CONTROL_HZ", 10_000)


def test_the_window_runs_until_the_person_quits(saved, monkeypatch, fast):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    hold = event(pygame.MOUSEMOTION, pos=(60, 60), rel=(0, 0), buttons=(0, 0, 0))
    frames = [[], [hold], [], [event(pygame.QUIT)]]
    monkeypatch.setattr(pygame.event, "get", queue_of(frames))
    run_session(Session(saved.append))
    assert lengths(saved) == [1]
    assert pygame.display.get_surface() is None


def test_a_crash_in_the_window_loses_no_finished_episode(saved, monkeypatch, fast):
    monkeypatch.setattr(teleop, "random_start", lambda random: GOAL_WITHIN_REACH)
    hold = event(pygame.MOUSEMOTION, pos=(60, 60), rel=(0, 0), buttons=(0, 0, 0))
    monkeypatch.setattr(pygame.event, "get", queue_of([[hold], [hold], [hold]]))
    with pytest.raises(StopIteration):  # the queue breaks down after three frames
        run_session(Session(saved.append))
    assert lengths(saved) == [1, 1, 1]
    assert pygame.display.get_surface() is None


def test_real_events_reach_the_session(saved, fast):
    pygame.display.init()
    pygame.display.set_mode((10, 10))
    pygame.event.post(event(pygame.KEYDOWN, key=pygame.K_q))
    run_session(Session(saved.append))
    assert not saved


def test_without_a_display_there_is_one_line(saved, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "none such")
    with pytest.raises(OSError, match="there is no display"):
        run_session(Session(saved.append))
