"""The expert of Avoid shows all ways equally often, touches nothing, and is a function of its seed."""

import numpy as np
import pytest
from scipy import stats

from immiscible_envs.avoid import FAR, PILLARS, REACH, WAYS, Plane, way_taken
from immiscible_envs.avoid_expert import ASIDE, NOISE, SPEED, make_episode, make_episodes, path


@pytest.fixture(scope="module")
def episodes():
    return list(make_episodes(96))


def replayed(episode):
    """The plane after every action but the last, from the first recorded position."""
    plane = Plane(1)
    plane.place(0, episode["position"][0].astype(float))
    positions = [plane.position[0].copy()]
    for action in episode["action"][:-1].astype(float):
        plane.advance(action[None], np.arange(1))
        positions.append(plane.position[0].copy())
    return plane, np.array(positions)


def test_every_demonstration_succeeds_and_replays_exactly(episodes):
    for episode in episodes:
        plane, positions = replayed(episode)
        np.testing.assert_array_equal(positions, episode["position"])
        assert plane.info()["is_success"][0] and positions[-2, 1] > FAR


def test_all_ways_are_equally_frequent(episodes):
    ways = [int(replayed(episode)[0].info()["way"][0]) for episode in episodes]
    counts = np.bincount(ways, minlength=len(WAYS))
    assert counts.tolist() == [4] * 24 and stats.chisquare(counts).pvalue > 0.05
    assert (
        stats.chisquare(np.bincount(ways[:90], minlength=24)).pvalue > 0.05
    )  # also of a number that 24 does not divide
    assert len({tuple(ways[first : first + 24]) for first in range(0, 96, 24)}) == 4  # in an order of their own


def test_the_path_says_the_way_that_the_plane_says(episodes):
    for episode in episodes[:24]:
        plane, positions = replayed(episode)
        assert way_taken(positions) == plane.info()["way"][0]


def test_paths_are_smooth_and_steps_are_even():
    for way in WAYS:
        points = path(way, np.array([256.0, 472.0]), np.zeros(3))
        steps = np.diff(points, axis=0)
        np.testing.assert_allclose(np.linalg.norm(steps, axis=1), SPEED, rtol=0.02)
        turns = np.abs(np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))))
        assert turns.max() < 0.6 and np.linalg.norm(points[:, None] - PILLARS, axis=-1).min() > REACH + ASIDE


def test_noise_is_about_the_path(episodes):
    """Without noise an episode is its path; with it, each action is off by that much."""

    def roughness(noise):
        positions = [make_episode(0, index, noise)["position"] for index in range(24)]
        return np.concatenate([np.diff(one, n=2, axis=0) for one in positions]).std()

    still = roughness(0.0)
    assert np.sqrt(roughness(NOISE) ** 2 - still**2) == pytest.approx(
        np.sqrt(6) * NOISE, rel=0.05
    )  # of second differences


def test_an_episode_is_a_function_of_seed_and_index(episodes):
    for key, values in make_episode(0, 7).items():
        np.testing.assert_array_equal(values, episodes[7][key])
    assert not np.array_equal(make_episode(1, 7)["position"][0], episodes[7]["position"][0])


@pytest.mark.parametrize(("words", "named"), [({"episodes": 0}, "episodes=0"), ({"episodes": 1, "seed": -1}, "seed=-1"),
                                              ({"episodes": 1, "noise": 50}, "noise=50")])  # fmt: skip
def test_numbers_that_cannot_be_are_refused(words, named):
    with pytest.raises(ValueError, match=named):
        make_episodes(**words)
