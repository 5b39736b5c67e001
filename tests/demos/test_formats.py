"""The same episodes as a zarr directory, a zip archive and a data set of LeRobot are the same demonstrations."""

import json
import zipfile

import numpy as np
import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.demos import convert, export
from immiscible_policy.demos import Column, content_hash, open_store, write_store
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.keys import require_keys
from immiscible_policy.demos.validate import problems
from immiscible_policy.tasks import task_of_store
from tests.demos.arm import KEYS, arm_arrays, write_lerobot, zipped
from tests.demos.stores import small_arrays, write_plain

parquet = pytest.importorskip("pyarrow.parquet")


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


@pytest.mark.parametrize("named", [["avoid"], {"name": "avoid"}, 3, "os:system", "gym:os:system", "metaworld/nothing"])
def test_what_names_no_task_of_ours_is_none(tmp_path, arm, named):
    assert task_of_store(write_store(tmp_path / "a.zarr", *arm, {"task": named})).name == "none"


def test_a_store_of_another_packages_task_says_which(tmp_path, arm):
    pytest.importorskip("metaworld")
    assert task_of_store(write_store(tmp_path / "a.zarr", *arm, {"task": "metaworld/push-v3"})).name.endswith("push-v3")


def test_an_archive_of_two_stores_is_refused(tmp_path, arm):
    path = zipped(write_store(tmp_path / "a.zarr", *arm), tmp_path / "two.zip", "a.zarr/")
    with zipfile.ZipFile(path, "a") as archive:
        for file in sorted(file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file()):
            archive.write(file, f"b.zarr/{file.relative_to(tmp_path / 'a.zarr')}")
    with pytest.raises(StoreError, match=r"two.zip: holds 2 stores \(a.zarr, b.zarr\); give an archive of one"):
        open_store(path)


def test_arrays_in_groups_have_the_groups_name_before_theirs(tmp_path):
    action, qpos = np.random.default_rng(0).normal(size=(2, 20, 3))
    path = write_store(tmp_path / "a.zarr", {"action": action.tolist(), "obs/qpos": torch.from_numpy(qpos)}, [8, 20])
    np.testing.assert_array_equal(open_store(path)["obs/qpos"], qpos)
    require_keys(path, "obs/qpos", "action")
    np.testing.assert_array_equal(open_store(path)["action"], action)
    with pytest.raises(CommandError, match="obs=obs/qpos,obs/qpos: names obs/qpos more than once"):
        require_keys(path, "obs/qpos,obs/qpos", "action")
    with pytest.raises(StoreError, match=r"data/none has shape \(20, 0\); there is nothing in a step of it"):
        write_store(tmp_path / "b.zarr", {"action": action, "none": np.empty((20, 0))}, [20])


def test_a_data_set_is_exported_as_it_was_recorded(tmp_path, arm):
    """Its rate, its cameras' names, and numbers that are true or false."""
    arrays, ends = arm
    closed = arrays["action"][:, :1] > 0
    path = write_store(tmp_path / "a.zarr", in_lerobots_words(arrays) | {"closed": closed}, ends)
    export.main([f"path={path}", f"out={tmp_path / 'set'}", "images=stored", "fps=50"])
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert {name for name in info["features"] if "image" in name} == {
        "observation.images.front", "observation.images.wrist"
    }  # fmt: skip
    export.main([f"path={tmp_path / 'set'}", f"out={tmp_path / 'again'}", "task=none"])
    again = json.loads((tmp_path / "again/meta/info.json").read_text())
    assert again["fps"] == 50 and isinstance(again["fps"], int)
    assert open_store(tmp_path / "again").fps == 50
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())["store.closed"]
    assert (stats["min"], stats["max"], stats["mean"]) == ([0.0], [1.0], [pytest.approx(closed.mean())])
    convert.main([f"path={tmp_path / 'again'}", f"out={tmp_path / 'b.zarr'}", "task=none"])
    np.testing.assert_array_equal(open_store(tmp_path / "b.zarr")["closed"].ravel(), closed.ravel())


def test_an_export_shows_policies_the_arrays_that_obs_names(tmp_path):
    """In that order, with names of their components; of the cameras those that are named."""
    arrays, ends = arm_arrays(side=8)
    path = write_store(tmp_path / "a.zarr", arrays | {"goal": arrays["qpos"][:, :1]}, ends, {"fps": 12.5})
    export.main([f"path={path}", f"out={tmp_path / 'set'}", "obs=goal,wrist,ee_pose", "action=qpos"])
    demos, info = open_store(tmp_path / "set"), json.loads((tmp_path / "set/meta/info.json").read_text())
    state = np.concatenate([arrays["qpos"][:, :1], arrays["ee_pose"]], axis=1)
    np.testing.assert_array_equal(demos["observation.state"], state)
    assert info["features"]["observation.state"]["names"] == ["goal", *(f"ee_pose_{i}" for i in range(5))]
    assert info["features"]["action"]["names"] == [f"qpos_{i}" for i in range(7)]
    assert list(demos.frames) == ["observation.image"] and info["fps"] == demos.fps == 12.5
    np.testing.assert_array_equal(demos.frames["observation.image"].as_bytes().numpy(), arrays["wrist"])
    rows = parquet.read_table(tmp_path / "set/data/chunk-000/file-000.parquet", columns=["action"])["action"]
    np.testing.assert_array_equal(np.stack(rows.to_pylist()).astype(np.float32), arrays["qpos"])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("fps=20", "fps=20: these were recorded at 10 Hz; leave it out"),
        ("fps=0", "fps=0: needs a number above 0"),
        ("obs=qpos,ee", "obs=ee: there is no ee; what fits: action (T, 7), ee_pose (T, 5), qpos (T, 7)"),
        ("action=command", "action=command: there is no command; what fits"),
        ("task=avoid", "obs=qpos: task=avoid names its own; leave it out, or use task=none"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_anything_is_read(tmp_path, monkeypatch, word, says):
    monkeypatch.setattr(export, "open_store", None)
    path = write_store(tmp_path / "a.zarr", *arm_arrays(), {"fps": 10})
    words = {"path": path, "out": tmp_path / "set", "obs": "qpos"} | dict([word.split("=")])
    with pytest.raises(CommandError) as error:
        export.main([f"{key}={value}" for key, value in words.items()])
    assert says in str(error.value)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_data_set_of_any_robot_becomes_a_store_whole(tmp_path, version):
    """Numbers, cameras and rate, under LeRobot's names."""
    data = write_lerobot(tmp_path / "set", *arm_arrays(side=16), version)
    convert.main([f"path={data}", f"out={tmp_path / 'a.zarr'}"])
    there, here = open_store(data), open_store(tmp_path / "a.zarr")
    same(there, here)
    assert here.fps == there.fps == 10 and task_of_store(tmp_path / "a.zarr").name == "none"
    assert content_hash(there, images=True) == content_hash(here, images=True)


def test_an_exported_task_is_known_again(tmp_path):
    """By the robot that `export` names, where the arrays alone do not tell."""
    arrays = {"position": np.random.default_rng(0).uniform(110, 400, (20, 2)), "action": np.full((20, 2), 200.0)}
    path = write_store(tmp_path / "a.zarr", arrays, [12, 20], {"task": "avoid"})
    export.main([f"path={path}", f"out={tmp_path / 'set'}"])
    convert.main([f"path={tmp_path / 'set'}", f"out={tmp_path / 'b.zarr'}"])
    assert [task_of_store(tmp_path / name).name for name in ("a.zarr", "set", "b.zarr")] == ["avoid"] * 3
    same(open_store(path), open_store(tmp_path / "b.zarr"))


def test_an_exported_store_is_read_in_place_as_it_was(tmp_path, arm):
    arrays, ends = arm
    numbers = {name: values for name, values in arrays.items() if values.ndim < 4}
    store = write_store(tmp_path / "arm.zarr", numbers, ends)
    export.main([f"path={store}", f"out={tmp_path / 'set'}", "fps=10"])
    demos = open_store(tmp_path / "set", dict.fromkeys(numbers, Column()))
    assert content_hash(demos) == content_hash(store)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("below", ["", "mine/arm.zarr/"])
def test_a_zip_archive_is_the_store_in_it(tmp_path, arm, zarr_format, below):
    store = write_plain(tmp_path / "a.zarr", *arm, zarr_format=zarr_format)
    archive = zipped(store, tmp_path / "a.zip", below)
    same(open_store(store), open_store(archive))
    assert not list(problems(archive)) and content_hash(archive, images=True) == content_hash(store, images=True)
