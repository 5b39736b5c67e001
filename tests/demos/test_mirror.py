"""A mirror image is a demonstration of the same task; twice mirrored is the original."""

from dataclasses import replace

import numpy as np
import pytest

from immiscible_envs.geometry import GOAL_POSE, coverage, keypoints
from immiscible_envs.rendering import render_state
from immiscible_policy.demos import content_hash, open_store, write_store
from immiscible_policy.demos.mirror import mirror, reflect
from tests.demos.stores import small_arrays

GOALS = [GOAL_POSE, (200.0, 300.0, 1.0), (256.0, 256.0, 0.0)]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    arrays, ends = small_arrays(image=6)
    return open_store(write_store(tmp_path_factory.mktemp("mirror") / "a.zarr", arrays, ends))


@pytest.mark.parametrize("goal", GOALS)
def test_twice_is_the_original(demos, goal):
    plain = replace(demos, image=None)
    again = reflect(reflect(plain, goal), goal)
    np.testing.assert_allclose(again.state, demos.state, atol=1e-4)
    np.testing.assert_allclose(again.action, demos.action, atol=1e-4)
    np.testing.assert_allclose(again.keypoint, keypoints(demos.state[:, 2:]), atol=2e-4)
    assert again.state.dtype == demos.state.dtype


def test_images_twice_mirrored_are_the_original(demos):
    np.testing.assert_array_equal(reflect(reflect(demos)).image[:], demos.image[:])
    assert not np.array_equal(reflect(demos).image[:], demos.image[:])


@pytest.mark.parametrize("goal", GOALS)
def test_a_mirror_image_covers_the_goal_as_much(demos, goal):
    twin = reflect(replace(demos, image=None), goal)
    for state, mirrored in zip(demos.state[::7], twin.state[::7], strict=True):
        assert coverage(state[2:], goal) == pytest.approx(coverage(mirrored[2:], goal), abs=1e-5)
        assert np.linalg.norm(state[:2] - state[2:4]) == pytest.approx(
            np.linalg.norm(mirrored[:2] - mirrored[2:4]), abs=1e-3
        )


def test_keypoints_are_those_of_the_mirrored_pose(demos):
    twin = reflect(demos)
    np.testing.assert_allclose(twin.keypoint, keypoints(twin.state[:, 2:]), atol=1e-3)


def test_mirror_appends_the_reflections(demos):
    both = mirror(demos)
    assert both.n_episodes == 2 * demos.n_episodes
    ids = np.arange(demos.n_episodes)
    assert content_hash(both.select(ids), images=True) == content_hash(demos, images=True)
    twin = both.select(ids + demos.n_episodes)
    assert content_hash(twin, images=True) == content_hash(reflect(demos), images=True)
    np.testing.assert_array_equal(twin.n_contacts, demos.n_contacts)


def test_missing_arrays_stay_missing(demos):
    both = mirror(replace(demos, image=None, n_contacts=None))
    assert both.image is None and both.n_contacts is None


def test_a_mirrored_image_shows_the_mirrored_state(tmp_path):
    arrays, ends = small_arrays((5,))
    arrays["img"] = np.stack([render_state(state.astype(np.float64)) for state in arrays["state"]])
    twin = reflect(open_store(write_store(tmp_path / "a.zarr", arrays, ends)))
    for mirrored, state in zip(twin.image[:], twin.state, strict=True):
        shown = render_state(state.astype(np.float64))
        apart = np.abs(mirrored.astype(float) - shown).mean()
        away = np.abs(arrays["img"][0].astype(float) - shown).mean()
        assert apart < 1.0 < away


def test_images_mirror_about_their_anti_diagonal_only(demos):
    with pytest.raises(ValueError, match=r"anti-diagonal.*Got goal=\[200.0, 256.0, 0.0\]"):
        mirror(demos, (200.0, 256.0, 0.0))
