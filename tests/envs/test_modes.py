"""Symmetric starts are their own mirror images, and modes obey the mirror."""

import gymnasium
import numpy as np
import pytest

from immiscible_envs.geometry import BAR, GOAL_POSE, STEM, mirror_state, place
from immiscible_envs.modes import (
    CLOCKWISE,
    COUNTER_CLOCKWISE,
    DECIDED_AT,
    UNDECIDED,
    begins_upside_down,
    classify,
    decided,
    symmetric_starts,
    turned,
)

OPPOSITE = np.array([COUNTER_CLOCKWISE, CLOCKWISE, UNDECIDED])


def wander(rng: np.random.Generator, steps: int = 60, count: int = 200) -> np.ndarray:
    """Angles (T, N) of blocks that drift one way or the other."""
    return np.cumsum(rng.normal(rng.normal(0, 0.04, count), 0.2, (steps, count)), axis=0)


@pytest.mark.parametrize("goal", [GOAL_POSE, (200.0, 270.0, 1.9)])
def test_symmetric_starts_are_their_own_mirror_images(goal):
    starts = symmetric_starts(goal)
    mirrored = mirror_state(starts, goal)
    np.testing.assert_allclose(mirrored[:, :4], starts[:, :4], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * mirrored[:, 4]), np.exp(1j * starts[:, 4]), atol=1e-9)
    np.testing.assert_allclose(np.cos(starts[:, 4] - goal[2]), -1)  # upside down
    assert len(np.unique(starts, axis=0)) == len(starts) >= 3


def test_an_episode_begins_exactly_at_a_symmetric_start_and_touches_nothing():
    env = gymnasium.make("immiscible/PushT-v0", obs_type="state")
    for start in symmetric_starts():
        state, info = env.reset(options={"state": start})
        np.testing.assert_allclose(state, start, atol=1e-9)
        state, _, _, _, info = env.step(start[:2])
        np.testing.assert_allclose(state, start, atol=1e-9)
        assert info["n_contacts"] == 0
        corners = np.concatenate([place(part, start[2:]) for part in (BAR, STEM)])
        assert (corners > 7).all() and (corners < 504).all()  # inside the walls


def test_a_positive_turn_is_clockwise_on_the_screen():
    right, turned = (place([(10.0, 0.0)], (0.0, 0.0, angle))[0] for angle in (0.0, 0.3))
    assert turned[1] > right[1]  # y points down: what points right turns downwards
    assert classify([0.0, 1.0, 2.0]) == CLOCKWISE
    assert classify([0.0, -1.0, -2.0]) == COUNTER_CLOCKWISE


def test_a_mode_takes_a_quarter_turn():
    assert classify(np.linspace(1, 1 + DECIDED_AT + 1e-9, 20)) == CLOCKWISE
    assert classify(np.linspace(1, 1 + DECIDED_AT - 1e-9, 20)) == UNDECIDED
    assert classify(np.linspace(1, 1 - DECIDED_AT - 1e-9, 20)) == COUNTER_CLOCKWISE
    jitter = np.random.default_rng(0).normal(0, 0.05, (300, 100))
    assert (classify(jitter) == UNDECIDED).all()
    assert classify([2.0]) == UNDECIDED


def test_the_way_back_does_not_count():
    there_and_back = np.concatenate([np.linspace(0, 1.5, 20), np.linspace(1.5, -3, 60)])
    assert classify(there_and_back) == COUNTER_CLOCKWISE
    assert classify(np.concatenate([np.linspace(0, 3, 40), np.linspace(3, 0, 40)])) == UNDECIDED


def test_turns_of_consecutive_parts_add_up():
    angles = wander(np.random.default_rng(1))
    np.testing.assert_allclose(turned(angles[:31])[-1] + turned(angles[30:]), turned(angles)[30:], atol=1e-12)


def test_multiples_of_two_pi_change_nothing():
    rng = np.random.default_rng(2)
    angles = wander(rng)
    np.testing.assert_allclose(
        turned(angles + 2 * np.pi * rng.integers(-3, 4, angles.shape)), turned(angles), atol=1e-12
    )
    assert np.array_equal(classify(angles % (2 * np.pi)), classify(angles))
    assert set(classify(angles)) == {CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED}


def test_a_mirrored_path_has_the_opposite_mode():
    rng = np.random.default_rng(3)
    angles = wander(rng)
    states = np.concatenate([rng.uniform(50, 450, (*angles.shape, 4)), angles[..., None] % (2 * np.pi)], axis=-1)
    assert np.array_equal(classify(mirror_state(states)[..., 4]), OPPOSITE[classify(states[..., 4])])


def test_a_path_is_decided_at_its_first_quarter_turn():
    angles = np.concatenate([np.linspace(0, -1, 10), np.linspace(-1, 3, 41)])
    steps = decided(angles, CLOCKWISE)
    assert turned(angles)[steps - 1] >= DECIDED_AT > turned(angles)[steps - 2]
    assert decided(-angles, COUNTER_CLOCKWISE) == steps
    assert decided(angles, UNDECIDED) == len(angles)


def test_upside_down_is_within_30_degrees_of_it():
    down = GOAL_POSE[2] + np.pi
    assert begins_upside_down([down + 0.5, 0.0]) and begins_upside_down([down - 0.5 - 2 * np.pi])
    assert not begins_upside_down([down + 0.55, down]) and not begins_upside_down([GOAL_POSE[2]])
