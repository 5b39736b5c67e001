"""The environment, as its registered specification describes it, for every kind of observation."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

import immiscible_envs
from immiscible_envs.geometry import GOAL_POSE, coverage, keypoints
from immiscible_envs.pusht import OBS_TYPES, PushTEnv
from immiscible_envs.rendering import render_state
from immiscible_envs.starts import legacy_starts, published_starts

SPEC = gymnasium.spec("immiscible/PushT-v0")
START = [100.0, 120.0, 240.0, 260.0, 0.5]
INFO = {"coverage", "is_success", "n_contacts", "block_pose", "goal_pose"}


@pytest.fixture
def env():
    return gymnasium.make(SPEC)


def rollout(env, seed, steps=20, options=None):
    env.action_space.seed(seed)
    results = [env.reset(seed=seed, options=options)]
    for _ in range(steps):
        results.append(env.step(env.action_space.sample()))
    return tuple(results)


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("obs_type", "render_mode"),
    [*((obs_type, mode) for obs_type in OBS_TYPES for mode in (None, "rgb_array")), ("state", "human")],
)
def test_check_env_has_nothing_to_say_but_that_actions_are_in_pixels(obs_type, render_mode):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(SPEC, obs_type=obs_type, render_mode=render_mode).unwrapped)
    messages = [str(warning.message) for warning in caught]
    assert [one for one in messages if "symmetric and normalized space" not in one] == []


@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_observations_are_what_the_specification_says(obs_type):
    env = gymnasium.make(SPEC, obs_type=obs_type)
    observation, info = env.reset(options={"state": START})
    if obs_type == "state":
        assert observation.dtype == np.float64
        np.testing.assert_allclose(observation, START, atol=1e-12)
    elif obs_type == "keypoints":
        assert observation.dtype == np.float64
        np.testing.assert_allclose(observation, [*keypoints(START[2:]).ravel(), *START[:2]], atol=1e-9)
    else:
        np.testing.assert_array_equal(observation["image"], render_state(START))
        np.testing.assert_array_equal(observation["agent_pos"], START[:2])
    for _ in range(30):
        observation, _, _, _, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)


@pytest.mark.parametrize("obs_type", ["state", "keypoints"])
def test_a_block_that_is_pressed_through_a_wall_stays_in_the_observation_space(obs_type):
    env, random, farthest = gymnasium.make(SPEC, obs_type=obs_type), np.random.default_rng(0), 0.0
    for seed in range(40):
        _, info = env.reset(seed=seed)
        outward = np.array([np.cos(seed), np.sin(seed)])
        for step in range(60):  # go behind the block, then push it outward
            reach = -150 if step < 9 else random.uniform(-20, 200)
            observation, _, _, _, info = env.step(info["block_pose"][:2] + reach * outward)
            assert env.observation_space.contains(observation)
            farthest = max(farthest, np.abs(info["block_pose"][:2] - 256).max())
    assert farthest > 256  # some did leave through a wall


@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_twin_rollouts_are_equal_to_the_bit(obs_type):
    twins = [gymnasium.make(SPEC, obs_type=obs_type) for _ in range(2)]
    first = [rollout(twins[0], seed) for seed in (0, 1)]
    again = [rollout(twins[1], seed) for seed in (1, 0)]
    assert data_equivalence(first[0], again[1], exact=True)
    assert data_equivalence(first[1], again[0], exact=True)
    assert not data_equivalence(first[0], first[1], exact=True)


def test_a_reset_is_a_pure_function_of_the_start(env):
    options = {"state": [256.0, 150.0, 256.0, 190.0, 0.1]}
    first = rollout(env, 3, 40, options)
    rollout(env, 4, 17)
    assert data_equivalence(rollout(env, 3, 40, options), first, exact=True)


def test_observations_and_infos_are_the_callers_own(env):
    observation, info = env.reset(options={"state": START})
    for array in (observation, info["block_pose"], info["goal_pose"]):
        array[:] = -1.0
    observation, _, _, _, info = env.step(np.array(START[:2]))
    np.testing.assert_allclose(observation, START, atol=1e-9)
    np.testing.assert_array_equal(info["goal_pose"], GOAL_POSE)


def test_info_reward_and_end_follow_coverage(env):
    observation, info = env.reset(options={"state": [50.0, 50.0, 256.0, 256.0, np.pi / 4 + 0.01]})
    assert set(info) == INFO and info["is_success"] is True
    _, reward, terminated, truncated, info = env.step(np.array([50.0, 50.0]))
    assert set(info) == INFO
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)
    env.reset(options={"state": [50.0, 50.0, 276.0, 256.0, np.pi / 4]})
    observation, reward, terminated, _, info = env.step(np.array([50.0, 50.0]))
    assert info["coverage"] == coverage(observation[2:]) and 0.5 < info["coverage"] < 0.95
    assert reward == pytest.approx(info["coverage"] / 0.95) and not terminated and info["is_success"] is False
    np.testing.assert_array_equal(info["block_pose"], observation[2:])


def test_contacts_are_reported(env):
    env.reset(options={"state": [256.0, 180.0, 256.0, 220.0, 0.0]})
    contacts = [env.step(np.array([256.0, 260.0]))[4]["n_contacts"] for _ in range(6)]
    assert contacts[0] in (0, 1) and contacts[-1] >= 1
    assert env.reset(options={"state": START})[1]["n_contacts"] == 0


def test_an_episode_is_truncated_after_300_steps(env):
    env.reset(options={"state": START})
    ends = [env.step(np.array(START[:2]))[3] for _ in range(immiscible_envs.MAX_EPISODE_STEPS)]
    assert ends == [False] * 299 + [True]


def test_random_starts_have_the_published_ranges(env):
    observations = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    assert (observations[:, :2] >= 50).all() and (observations[:, :2] < 450).all()
    assert (observations[:, 2:4] > 99.99).all() and (observations[:, 2:4] < 399.01).all()
    assert np.ptp(observations[:, 4]) > 6  # all round the circle
    assert len(np.unique(observations, axis=0)) == 300


def test_seedless_resets_go_on_from_the_seeded_one(env):
    starts = [env.reset(seed=5)[0], env.reset()[0], env.reset()[0]]
    again = [env.reset(seed=5)[0], env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(starts, again)
    assert len(np.unique(starts, axis=0)) == 3


def test_a_legacy_seed_starts_where_the_published_protocol_does(env):
    for seed, state in zip(*published_starts(), strict=True):
        np.testing.assert_allclose(env.reset(options={"legacy_seed": int(seed)})[0], state, atol=1e-12)
    arguments = legacy_starts([100_000])[0]
    as_a_state = env.reset(options={"state": arguments})[0]
    np.testing.assert_allclose(as_a_state[2:4], arguments[2:4], atol=1e-9)  # the other order, another place


def test_the_goal_of_the_options_holds_for_one_episode():
    env = gymnasium.make(SPEC, goal_pose=(200.0, 210.0, 1.0))
    np.testing.assert_array_equal(env.reset(seed=0)[1]["goal_pose"], (200.0, 210.0, 1.0))
    goal = (300.0, 310.0, 2.0)
    assert env.reset(options={"state": [60.0, 60.0, *goal], "goal_pose": goal})[1]["is_success"]
    np.testing.assert_array_equal(env.step(np.array([60.0, 60.0]))[4]["goal_pose"], goal)
    np.testing.assert_array_equal(env.reset(seed=0)[1]["goal_pose"], (200.0, 210.0, 1.0))


def test_the_goal_is_in_the_picture():
    pictures = [gymnasium.make(SPEC, obs_type="image", goal_pose=goal) for goal in (GOAL_POSE, (150, 150, 0))]
    one, other = (env.reset(options={"state": START})[0]["image"] for env in pictures)
    assert (one != other).any()


def test_commands_outside_the_box_act_as_the_nearest_inside(env):
    def after(action):
        env.reset(options={"state": START})
        return env.step(np.array(action))[0]

    np.testing.assert_array_equal(after([-1e300, 700.0]), after([0.0, 512.0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_actions_of_any_numeric_type_are_taken(env, dtype):
    env.reset(options={"state": START})
    assert env.step(np.array([120, 130], dtype))[0][0] > START[0]


@pytest.mark.parametrize(
    "action",
    [[np.nan, 1.0], [np.inf, 1.0], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], 5.0, "ab", None, {"x": 1}],
    ids=str,
)
def test_bad_actions_are_refused_and_change_nothing(action):
    env = PushTEnv()
    env.reset(options={"state": START})
    refused("^action must", lambda: env.step(action))
    np.testing.assert_allclose(env.step(np.array(START[:2]))[0], START, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stat": START}, "unknown reset option 'stat'; known: state, legacy_seed, goal_pose"),
        ({"state": START, "legacy_seed": 1}, "both name a start"),
        ({"state": START[:4]}, r"option state must have shape \(5,\), got \(4,\)"),
        ({"state": [np.nan] * 5}, "option state must be finite"),
        ({"state": [600, 0, 0, 0, 0]}, "option state .* is outside"),
        ({"legacy_seed": -1}, "legacy seed -1"),
        ({"legacy_seed": [1, 2]}, "legacy seed"),
        ({"goal_pose": [1, 2]}, "goal_pose must have shape"),
        ({"goal_pose": [1, 900, 0]}, "goal_pose .* is outside"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_one_line(env, options, message):
    refused(message, lambda: env.reset(options=options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_type": "pixels"}, "unknown obs_type 'pixels'; known: state, keypoints, image"),
        ({"goal_pose": "here"}, "goal_pose must be numbers"),
        ({"goal_pose": (1.0, 2.0, np.inf)}, "goal_pose must be finite"),
        ({"render_mode": "ansi"}, "unknown render_mode 'ansi'; known: rgb_array, human"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    refused(message, lambda: PushTEnv(**arguments))


def test_rgb_array_is_the_canvas_of_the_state():
    env = gymnasium.make(SPEC, render_mode="rgb_array")
    observation, _ = env.reset(seed=1)
    picture = env.render()
    assert picture.shape == (512, 512, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, render_state(observation, size=512))


def test_human_mode_shows_every_step_and_closes_twice():
    env = gymnasium.make(SPEC, render_mode="human").unwrapped
    env.metadata = {**env.metadata, "render_fps": 10_000}
    observation, _ = env.reset(seed=1)
    from immiscible_envs.rendering import pygame

    def shown():
        return pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)

    np.testing.assert_array_equal(shown(), render_state(observation, size=512))
    observation = env.step(np.array([400.0, 100.0]))[0]
    np.testing.assert_array_equal(shown(), render_state(observation, size=512))
    assert env.render() is None
    env.close()
    env.close()
    assert pygame.display.get_surface() is None


def test_two_environments_may_be_shown_and_a_step_is_shown_once(monkeypatch):
    one, other = (gymnasium.make(SPEC, render_mode="human").unwrapped for _ in range(2))
    for env in (one, other):
        env.metadata = {**env.metadata, "render_fps": 10_000}
        env.reset(seed=1)
    one.close()
    other.step(np.array([400.0, 100.0]))
    from immiscible_envs.rendering import Window, pygame

    shown = []
    monkeypatch.setattr(Window, "show", lambda self, picture, rate: shown.append(picture))
    other.step(np.array([400.0, 100.0]))
    other.render()
    assert len(shown) == 1
    other.render()
    assert len(shown) == 2
    other.close()
    assert pygame.display.get_surface() is None


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_close_twice_without_a_window(render_mode):
    env = PushTEnv(render_mode=render_mode)
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.render_mode == render_mode


def test_goal_pose_given_as_an_array_is_copied():
    goal = np.array(GOAL_POSE)
    env = PushTEnv(goal_pose=goal)
    goal[:] = 0.0
    np.testing.assert_array_equal(env.reset(seed=0)[1]["goal_pose"], GOAL_POSE)
