"""The growing replay store: zarr reads it, and an interrupted write costs no earlier episode."""

import numpy as np
import pytest
import zarr

from immiscible_envs import recorder
from immiscible_envs.recorder import CHUNK_ROWS, COLUMNS, Recorder


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(recorder.os, "fsync", lambda descriptor: None)


def episode(length, seed):
    random = np.random.default_rng(seed)
    return {name: random.uniform(0, 255, (length, *row)).astype(np.float32) for name, row in COLUMNS.items()}


def read(path):
    group = zarr.open_group(str(path), mode="r")
    return {name: group[f"data/{name}"][:] for name in COLUMNS}, group["meta/episode_ends"][:]


def assert_holds(path, episodes):
    columns, ends = read(path)
    lengths = [len(one["state"]) for one in episodes]
    np.testing.assert_array_equal(ends, np.cumsum(lengths))
    for name in COLUMNS:
        np.testing.assert_array_equal(columns[name], np.concatenate([one[name] for one in episodes]))


def test_zarr_reads_back_what_was_appended(tmp_path):
    lengths = [5, CHUNK_ROWS - 5, 1, 2 * CHUNK_ROWS + 3]  # end within a chunk, on its edge, and beyond it
    episodes = [episode(length, seed) for seed, length in enumerate(lengths)]
    path = tmp_path / "store.zarr"
    for count, one in enumerate(episodes, start=1):
        Recorder(path).append(one)  # opened anew each time, as by another session
        assert_holds(path, episodes[:count])
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_the_layout_is_the_human_demonstrations(tmp_path, human_store):
    Recorder(tmp_path / "store.zarr").append(episode(3, 0))
    ours = zarr.open_group(str(tmp_path / "store.zarr"), mode="r")
    theirs = zarr.open_group(str(human_store), mode="r")
    assert ours.metadata.zarr_format == theirs.metadata.zarr_format == 2
    for name in [*(f"data/{column}" for column in COLUMNS), "meta/episode_ends"]:
        assert ours[name].shape[1:] == theirs[name].shape[1:] and ours[name].dtype == theirs[name].dtype
    assert set(ours["data"].array_keys()) == set(theirs["data"].array_keys())


def test_many_episodes_fill_more_than_one_chunk_of_ends(tmp_path):
    path = tmp_path / "store.zarr"
    store = Recorder(path)
    for seed in range(CHUNK_ROWS + 2):
        store.append(episode(1, seed))
    np.testing.assert_array_equal(read(path)[1], np.arange(1, CHUNK_ROWS + 3))
    np.testing.assert_array_equal(store.episode_ends, np.arange(1, CHUNK_ROWS + 3))


EMPTY_STORE, EPISODE = 6 + 3, 3 + 2 * 6  # file writes: six arrays, three groups; the groups, two for each array


@pytest.mark.parametrize(
    ("n_finished", "writes_done"),
    [*((0, done) for done in range(EMPTY_STORE + EPISODE - 3)), *((1, done) for done in range(EPISODE))],
)
def test_a_crash_while_writing_loses_only_the_episode_being_written(tmp_path, monkeypatch, n_finished, writes_done):
    path, finished = tmp_path / "store.zarr", [episode(3, 0)][:n_finished]
    for one in finished:
        Recorder(path).append(one)
    left = iter(range(writes_done))

    def crash_later(descriptor):
        if next(left, None) is None:
            raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(recorder.os, "fsync", crash_later)
        with pytest.raises(OSError, match="the disk is gone"):
            Recorder(path).append(episode(4, 1))
    assert len(Recorder(path).episode_ends) == n_finished
    if path.exists():
        columns, ends = read(path)
        assert ends.tolist() == [3][:n_finished]
        for name, one in [(name, one) for name in COLUMNS for one in finished]:
            np.testing.assert_array_equal(columns[name][:3], one[name])
    third = episode(2, 2)
    Recorder(path).append(third)
    assert_holds(path, [*finished, third])
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_a_store_is_created_empty_and_readable(tmp_path):
    path = tmp_path / "new" / "store.zarr"
    Recorder(path).create()
    columns, ends = read(path)
    assert {name: rows.shape for name, rows in columns.items()} == {name: (0, *row) for name, row in COLUMNS.items()}
    assert ends.shape == (0,)
    Recorder(path).append(episode(2, 0))
    Recorder(path).create()  # which changes nothing then
    assert_holds(path, [episode(2, 0)])


def test_nothing_is_created_before_the_first_episode(tmp_path):
    assert len(Recorder(tmp_path / "store.zarr").episode_ends) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "length", "empty"])
def test_bad_episodes_are_refused_and_write_nothing(tmp_path, change):
    bad = episode(0 if change == "empty" else 3, 0)
    if change == "missing":
        del bad["img"]
    elif change == "unknown":
        bad["image"] = bad["img"]
    elif change == "shape":
        bad["action"] = bad["action"][:, :1]
    elif change == "length":
        bad["action"] = bad["action"][:2]
    with pytest.raises(ValueError, match="columns|must be L >= 1 rows") as error:
        Recorder(tmp_path / "store.zarr").append(bad)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_other_making_is_refused(tmp_path, human_store):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", human_store):
        with pytest.raises(ValueError, match="is not a store that this recorder made"):
            Recorder(path)


@pytest.mark.parametrize("content", ["[1]", "1", "not json", "{}", '{"shape": null}', '{"shape": ["x", 5]}'])
def test_a_store_with_other_metadata_is_refused(tmp_path, content):
    path = tmp_path / "store.zarr"
    Recorder(path).create()
    (path / "data" / "state" / ".zarray").write_text(content)
    with pytest.raises(ValueError, match="is not a store that this recorder made; give a new path$"):
        Recorder(path)
