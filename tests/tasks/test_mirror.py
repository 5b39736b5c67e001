"""A mirror image is a demonstration of the same task; twice mirrored is the original."""

import numpy as np
import pytest

from immiscible_envs.geometry import coverage, keypoints
from immiscible_envs.rendering import render_state
from immiscible_policy.demos import content_hash, write_store
from immiscible_policy.tasks.pusht import reflect
from tests.demos.stores import PUSHT, opened, small_arrays


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    arrays, ends = small_arrays(image=6)
    return opened(write_store(tmp_path_factory.mktemp("mirror") / "a.zarr", arrays, ends))


def test_twice_is_the_original(demos):
    again = reflect(reflect(demos))
    np.testing.assert_allclose(again["state"], demos["state"], atol=1e-4)
    np.testing.assert_allclose(again["action"], demos["action"], atol=1e-4)
    np.testing.assert_allclose(again["keypoint"], keypoints(demos["state"][:, 2:]), atol=2e-4)
    assert again["state"].dtype == demos["state"].dtype


def test_images_twice_mirrored_are_the_original(demos):
    np.testing.assert_array_equal(reflect(reflect(demos)).frames["img"][:], demos.frames["img"][:])
    assert not np.array_equal(reflect(demos).frames["img"][:], demos.frames["img"][:])


def test_a_mirror_image_covers_the_goal_as_much(demos):
    twin = reflect(demos)
    for state, mirrored in zip(demos["state"][::7], twin["state"][::7], strict=True):
        assert coverage(state[2:]) == pytest.approx(coverage(mirrored[2:]), abs=1e-5)
        assert np.linalg.norm(state[:2] - state[2:4]) == pytest.approx(
            np.linalg.norm(mirrored[:2] - mirrored[2:4]), abs=1e-3
        )


def test_keypoints_are_those_of_the_mirrored_pose(demos):
    twin = reflect(demos)
    np.testing.assert_allclose(twin["keypoint"], keypoints(twin["state"][:, 2:]), atol=1e-3)


def test_mirror_appends_the_reflections(demos):
    both = PUSHT.mirror(demos)
    assert both.n_episodes == 2 * demos.n_episodes
    ids = np.arange(demos.n_episodes)
    assert content_hash(both.select(ids), images=True) == content_hash(demos, images=True)
    twin = both.select(ids + demos.n_episodes)
    assert content_hash(twin, images=True) == content_hash(reflect(demos), images=True)
    np.testing.assert_array_equal(twin["n_contacts"], demos["n_contacts"])


def test_missing_arrays_stay_missing(tmp_path):
    arrays, ends = small_arrays()
    del arrays["n_contacts"]
    both = PUSHT.mirror(opened(write_store(tmp_path / "a.zarr", arrays, ends)))
    assert not both.frames and "n_contacts" not in both.arrays


def test_a_mirrored_image_shows_the_mirrored_state(tmp_path):
    arrays, ends = small_arrays((5,))
    arrays["img"] = np.stack([render_state(state.astype(np.float64)) for state in arrays["state"]])
    twin = reflect(opened(write_store(tmp_path / "a.zarr", arrays, ends)))
    for mirrored, state in zip(twin.frames["img"][:], twin["state"], strict=True):
        shown = render_state(state.astype(np.float64))
        apart = np.abs(mirrored.astype(float) - shown).mean()
        away = np.abs(arrays["img"][0].astype(float) - shown).mean()
        assert apart < 1.0 < away
