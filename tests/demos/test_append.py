"""The growing store: it reads like any other, and an interrupted write costs no earlier episode."""

import numpy as np
import pytest
import zarr.storage._local

from immiscible_policy.demos.append import append_episode, drop_unfinished, recorded_ends
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.store import open_store
from tests.demos.stores import small_arrays


def episode(length, seed):
    arrays = small_arrays((length,), image=4, seed=seed)[0]
    return {name: values * (name != "n_contacts") for name, values in arrays.items()}  # zeros are stored as well


def assert_holds(path, episodes):
    demos = open_store(path)
    np.testing.assert_array_equal(demos.episode_ends, np.cumsum([len(one["state"]) for one in episodes]))
    np.testing.assert_array_equal(recorded_ends(path), demos.episode_ends)
    root = zarr.open_group(path, mode="r")
    for name in episodes[0]:
        np.testing.assert_array_equal(root[f"data/{name}"][:], np.concatenate([one[name] for one in episodes]))


def test_episodes_read_back_after_every_one(tmp_path):
    path, episodes = tmp_path / "a.zarr", [episode(length, seed) for seed, length in enumerate((5, 11, 1, 35))]
    assert not len(recorded_ends(path))
    for count, one in enumerate(episodes, start=1):
        append_episode(path, one, {"made_by": "a test"})
        assert_holds(path, episodes[:count])
    assert zarr.open_group(path).attrs["made_by"] == "a test"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_crash_at_any_write_loses_only_the_episode_being_written(tmp_path, monkeypatch):
    first, second, third = episode(3, 0), episode(4, 1), episode(2, 2)
    put = zarr.storage._local._put
    writes = 0
    while True:
        path = tmp_path / f"{writes}.zarr"
        append_episode(path, first)
        left = iter(range(writes))

        def crash_later(*args, left=left, **options):
            if next(left, None) is None:
                raise OSError("the disk is gone")
            return put(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage._local, "_put", crash_later)
            try:
                append_episode(path, second)
                break
            except OSError as error:
                assert "the disk is gone" in str(error)
        assert recorded_ends(path).tolist() == [3]
        root = zarr.open_group(path, mode="r")
        for name, values in first.items():
            np.testing.assert_array_equal(root[f"data/{name}"][:3], values)
        append_episode(path, third)
        assert_holds(path, [first, third])
        writes += 1
    assert writes >= 2 * len(first) + 2  # metadata and a chunk of every array, and of the ends


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "length", "empty"])
def test_bad_episodes_are_refused_and_write_nothing(tmp_path, change):
    bad = episode(3, 0)
    if change == "missing":
        del bad["img"]
    elif change == "unknown":
        bad["top"] = bad["img"]
    elif change == "shape":
        bad["img"] = bad["img"][:, :2]
    elif change == "length":
        bad["action"] = bad["action"][:2]
    else:
        bad = {name: values[:0] for name, values in bad.items()}
    path, good = tmp_path / "a.zarr", [episode(5, 1)]
    append_episode(path, good[0])
    with pytest.raises(StoreError, match="does not fit the arrays of the store|of the same length") as error:
        append_episode(path, bad)
    assert "\n" not in str(error.value)
    assert_holds(path, good)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one | {"action": one["action"] * np.nan}, r"data/action\[0\] is nan at step 0"),
        (lambda one: one | {"action": one["action"].astype(np.float64)}, r"action \(2,\) float64.* does not fit"),
    ],
)
def test_a_later_episode_is_looked_at_as_the_first_one_is(tmp_path, change, says):
    append_episode(tmp_path / "a.zarr", episode(5, 0))
    with pytest.raises(StoreError, match=says):
        append_episode(tmp_path / "a.zarr", change(episode(4, 1)))
    assert_holds(tmp_path / "a.zarr", [episode(5, 0)])


def test_what_an_interrupted_episode_left_can_be_dropped(tmp_path):
    path = tmp_path / "a.zarr"
    append_episode(path, episode(5, 0))
    state = zarr.open_array(path, path="data/state")
    state.resize((9, 5))
    with pytest.raises(StoreError, match="the arrays differ in length: .*data/state 9; after an interrupted recording"):
        open_store(path)
    drop_unfinished(path)
    assert_holds(path, [episode(5, 0)])


def test_a_store_with_a_copy_of_its_metadata_grows_all_the_same(tmp_path):
    path = tmp_path / "a.zarr"
    append_episode(path, episode(5, 0))
    zarr.consolidate_metadata(path)
    append_episode(path, episode(4, 1))
    assert open_store(path).lengths.tolist() == [5, 4]
