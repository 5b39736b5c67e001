"""The same episodes as a zarr directory, a zip archive and a data set of LeRobot are the same demonstrations."""

import numpy as np
import pytest

from immiscible_policy.commands.demos import export
from immiscible_policy.demos import Column, content_hash, open_store, write_store
from immiscible_policy.demos.validate import problems
from immiscible_policy.tasks import task_of_store
from tests.demos.arm import KEYS, arm_arrays, write_lerobot, zipped
from tests.demos.stores import small_arrays, write_plain

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def arm():
    return arm_arrays(episodes=5, steps=9, side=16)


def same(first, second):
    assert first.arrays.keys() == second.arrays.keys() and first.frames.keys() == second.frames.keys()
    for key, values in first.arrays.items():
        assert values.dtype == second[key].dtype
        np.testing.assert_array_equal(values, second[key])
    for camera, frames in first.frames.items():
        np.testing.assert_array_equal(frames[:], second.frames[camera][:])
        np.testing.assert_array_equal(frames.as_bytes(), second.frames[camera].as_bytes())
    np.testing.assert_array_equal(first.episode_ends, second.episode_ends)


def in_lerobots_words(arrays):
    return {KEYS.get(key, f"observation.images.{key}"): values for key, values in arrays.items()}


@pytest.mark.parametrize("version", [pytest.param("v2.1", marks=pytest.mark.slow), "v3.0"])
def test_a_data_set_of_lerobot_is_the_store_of_the_same_arrays(tmp_path, arm, version):
    arrays, ends = arm
    store = open_store(write_store(tmp_path / "a.zarr", in_lerobots_words(arrays), ends))
    path = write_lerobot(tmp_path / "set", arrays, ends, version)
    demos = open_store(path)
    same(store, demos)
    assert demos.fps == 10 and not list(problems(path))
    for images in (False, True):
        assert content_hash(demos, images=images) == content_hash(store, images=images)


def test_pictures_are_read_in_any_order(tmp_path, arm):
    arrays, ends = arm
    demos = open_store(write_lerobot(tmp_path / "set", arrays, ends))
    front = demos.frames["observation.images.front"]
    for rows in ([40, 3, 3, 17], [0], range(len(demos))):
        np.testing.assert_array_equal(front[np.array(rows)], arrays["front"][list(rows)])
    chosen = demos.select([3, 1])
    steps = np.concatenate([np.arange(*demos.episodes[i].indices(99)[:2]) for i in (3, 1)])
    np.testing.assert_array_equal(chosen.frames["observation.images.wrist"][:], arrays["wrist"][steps])


def test_what_a_store_shows_is_found_out(tmp_path, arm):
    attrs = {"task": "avoid"}
    stores = {
        "none": write_store(tmp_path / "arm.zarr", *arm),
        "avoid": write_store(tmp_path / "avoid.zarr", *arm, attrs),
        "pusht": write_plain(tmp_path / "pusht.zarr", *small_arrays()),
    }
    assert {name: task_of_store(path).name for name, path in stores.items()} == {name: name for name in stores}


def test_an_exported_store_is_read_in_place_as_it_was(tmp_path, arm):
    arrays, ends = arm
    numbers = {name: values for name, values in arrays.items() if values.ndim < 4}
    store = write_store(tmp_path / "arm.zarr", numbers, ends)
    export.main([f"path={store}", f"out={tmp_path / 'set'}"])
    demos = open_store(tmp_path / "set", dict.fromkeys(numbers, Column()))
    assert content_hash(demos) == content_hash(store)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("below", ["", "mine/arm.zarr/"])
def test_a_zip_archive_is_the_store_in_it(tmp_path, arm, zarr_format, below):
    store = write_plain(tmp_path / "a.zarr", *arm, zarr_format=zarr_format)
    archive = zipped(store, tmp_path / "a.zip", below)
    same(open_store(store), open_store(archive))
    assert not list(problems(archive)) and content_hash(archive, images=True) == content_hash(store, images=True)
