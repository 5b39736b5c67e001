"""Pictures: what lies where, in which colour, and how they are resized."""

import numpy as np
import pytest

from immiscible_envs.geometry import BAR, GOAL_POSE, STEM, place
from immiscible_envs.rendering import (
    AGENT_COLOR,
    BLOCK_COLOR,
    GOAL_COLOR,
    Window,
    open_display,
    pygame,
    render_state,
    resize,
)
from immiscible_policy.results.video import require_display

FAR = (60.0, 60.0)
STATE = [*FAR, 150.0, 300.0, 2.0]


def at(picture, point):
    x, y = np.round(point).astype(int)
    return tuple(int(value) for value in picture[y, x])


def test_colours_lie_where_the_things_are():
    picture = render_state(STATE, size=512)
    light_agent, light_block = (78, 126, 255), (143, 163, 184)
    assert at(picture, FAR) == light_agent and at(picture, np.add(FAR, (13, 0))) == AGENT_COLOR
    for part in (BAR, STEM):
        assert at(picture, place(part, STATE[2:]).mean(axis=0)) == light_block
        assert at(picture, place(part, STATE[2:])[0]) == BLOCK_COLOR
        assert at(picture, place(part, GOAL_POSE).mean(axis=0)) == GOAL_COLOR
    assert at(picture, (450, 450)) == (255, 255, 255) and at(picture, (5, 200)) == (211, 211, 211)


def test_the_goal_lies_under_the_block_and_the_agent_on_top():
    picture = render_state([256.0, 300.0, 256.0, 256.0, np.pi / 4], size=512)
    assert at(picture, (256, 300)) == (78, 126, 255)
    green = (picture == GOAL_COLOR).all(axis=2).mean()
    assert green < 0.002  # but for single pixels of the rim


def test_the_goal_moves_with_its_pose():
    goal = (120.0, 380.0, 0.0)
    picture = render_state([*FAR, 400.0, 100.0, 0.0], goal, size=512)
    assert at(picture, (120, 395)) == GOAL_COLOR and at(picture, (256, 270)) == (255, 255, 255)


def test_pictures_are_new_arrays_of_the_size_asked_for():
    for size in (1, 96, 224, 512, 700):
        picture = render_state(STATE, size=size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
        assert picture.flags.writeable
    np.testing.assert_array_equal(render_state(STATE), render_state(STATE))


def test_resizing_keeps_even_pictures_and_reproduces_ramps():
    even = np.full((512, 512, 3), 173, np.uint8)
    np.testing.assert_array_equal(resize(even, 96), np.full((96, 96, 3), 173))
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    centers = (np.arange(96) + 0.5) * 256 / 96 - 0.5  # bilinear interpolation of a line is the line
    np.testing.assert_allclose(resize(ramp, 96)[:, 0, 0], centers, atol=0.51)
    np.testing.assert_allclose(resize(ramp.transpose(1, 0, 2), 96)[0, :, 0], centers, atol=0.51)


def test_resizing_by_hand():
    checker = np.zeros((4, 4, 3), np.uint8)
    checker[:2, :2], checker[2:, 2:] = 200, 100
    np.testing.assert_array_equal(resize(checker, 2)[..., 0], [[200, 0], [0, 100]])
    np.testing.assert_array_equal(resize(checker, 1)[..., 0], [[75]])  # the mean of the four in the middle


@pytest.mark.parametrize(
    ("state", "size", "message"),
    [
        (STATE, 0, "size 0 must be at least 1"),
        (STATE[:4], 96, "state must have shape"),
        ([np.nan] * 5, 96, "state must be finite"),
    ],
)
def test_bad_input_is_refused(state, size, message):
    with pytest.raises(ValueError, match=message):
        render_state(state, size=size)


@pytest.fixture(params=["offscreen", "dummy"])
def no_display(request, monkeypatch):
    """SDL on a machine without a display: it begins, with a driver that shows nothing."""
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setattr(pygame.display, "init", lambda: None)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: request.param)


@pytest.mark.parametrize("opens", [Window, lambda: open_display((6, 4)), require_display])
def test_a_window_that_nobody_can_see_is_refused(no_display, opens):
    with pytest.raises(OSError, match="^there is no display to open a window on; .*") as error:
        opens()
    assert "\n" not in str(error.value) and not pygame.display.get_init()


def test_a_driver_that_fails_is_the_same_mistake(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "none such")
    with pytest.raises(OSError, match=r"^there is no display to open a window on; .*none such"):
        Window()


def test_an_unseen_window_may_be_asked_for(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert open_display((6, 4), "title").get_size() == (6, 4)
    assert pygame.display.get_caption()[0] == "title"
    pygame.display.quit()
