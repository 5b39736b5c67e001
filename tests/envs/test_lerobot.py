"""PushT under LeRobot's names: same episodes, other observations."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import immiscible_envs.lerobot
from immiscible_envs.geometry import BAR, STEM


@pytest.fixture
def pair():
    """LeRobot's view, and the plain environment with states observed."""
    return gymnasium.make("immiscible/PushT-LeRobot-v0"), gymnasium.make("immiscible/PushT-v0")


def test_it_is_a_proper_environment():
    check_env(immiscible_envs.lerobot.make(), skip_render_check=True)


def test_a_seed_is_the_published_start(pair):
    ours, plain = pair
    seen, info = ours.reset(seed=100003)
    state, reported = plain.reset(options={"legacy_seed": 100003})
    np.testing.assert_array_equal(seen["agent_pos"], state[:2])
    np.testing.assert_array_equal(info["block_pose"], reported["block_pose"])


def test_options_come_before_the_seed(pair):
    ours, plain = pair
    start = {"state": [100, 120, 250, 260, 0.7]}
    seen, _ = ours.reset(seed=100003, options=start)
    np.testing.assert_array_equal(seen["agent_pos"], plain.reset(options=start)[0][:2])


def test_steps_are_those_of_the_plain_environment(pair):
    ours, plain = pair
    ours.reset(seed=100000)
    plain.reset(options={"legacy_seed": 100000})
    for action in np.random.default_rng(0).uniform(0, 512, (40, 2)):
        seen, *rest = ours.step(action)
        state, *same = plain.step(action)
        assert rest[:3] == same[:3]
        np.testing.assert_array_equal(seen["agent_pos"], state[:2])


def test_the_corners_are_the_ts_in_lerobots_order(pair):
    ours, _ = pair
    seen, info = ours.reset(options={"state": [50, 50, 200, 150, 0]})
    x, y = info["block_pose"][:2]
    drawn = [(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)]
    np.testing.assert_allclose(seen["environment_state"].reshape(8, 2) - (x, y), drawn, atol=1e-9)
    assert {tuple(corner) for corner in drawn} == {tuple(corner) for corner in np.concatenate([BAR, STEM])}


def test_lerobot_can_vectorise_it():
    batch = gymnasium.make_vec("immiscible/PushT-LeRobot-v0", num_envs=3, vectorization_mode="sync")
    seen, _ = batch.reset(seed=[100000, 100001, 100002])
    assert seen["environment_state"].shape == (3, 16) and seen["agent_pos"].shape == (3, 2)
    assert batch.call("_max_episode_steps") == (300, 300, 300)
