"""A store becomes a LeRobot dataset, LeRobot loads it, and converting it back gives the same arrays."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from immiscible_envs.rendering import render_state
from immiscible_policy.demos import content_hash, open_store, write_store
from immiscible_policy.demos.export import moments
from tests.demos.arm import arm_arrays
from tests.demos.commands import mistake, run
from tests.demos.stores import LENGTHS, PUSHT, small_arrays, write_plain
from tests.demos.test_lerobot import corners_of
from tests.plugins.peers import each_lerobot, needs, peers

parquet = pytest.importorskip("pyarrow.parquet")

LOAD = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, arrays = sys.argv[1], np.load(sys.argv[2])
times = {"action": [-0.1, 0, 0.1], "observation.state": [-0.1, 0], "observation.environment_state": [-0.1, 0]}
data = LeRobotDataset("local/a", root=root, delta_timestamps=times | {"observation.image": [-0.1, 0]})
ends = arrays["ends"]
starts = [0, *ends[:-1]]
assert len(data) == ends[-1] and data.num_episodes == len(ends) and data.fps == 10
assert list(data.meta.episodes["dataset_from_index"]) == starts
assert list(data.meta.episodes["dataset_to_index"]) == [*ends]
for row in [0, 1, 11, 12, 41, 42, 50]:
    item = data[row]
    episode = int(np.searchsorted(ends, row, side="right"))
    steps = np.array([row - 1, row, row + 1])
    inside = np.clip(steps, starts[episode], ends[episode] - 1)
    assert item["episode_index"] == episode and item["frame_index"] == row - starts[episode] and item["index"] == row
    assert np.array_equal(item["action"].numpy(), arrays["action"][inside])
    assert np.array_equal(item["action_is_pad"].numpy(), steps != inside)
    assert np.array_equal(item["observation.state"].numpy(), arrays["state"][inside[:2], :2])
    assert np.array_equal(item["observation.environment_state"].numpy(), arrays["corners"][inside[:2]])
    pixels = np.rint(255 * item["observation.image"].numpy()).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(pixels, arrays["img"][inside[:2]])
    assert item["task"] == sys.argv[3]
assert np.array_equal(data.meta.stats["action"]["max"], arrays["action"].max(axis=0))
assert data.meta.stats["observation.image"]["mean"].shape == (3, 1, 1)

from lerobot.datasets.dataset_tools import delete_episodes
left = delete_episodes(data, [1], output_dir=sys.argv[4], repo_id="local/b")
assert left.num_episodes == len(ends) - 1 and len(left) == ends[-1] - (ends[1] - ends[0])
"""


def exported(tmp_path, image=0, *words):
    arrays, ends = small_arrays(image=image)
    store = write_plain(tmp_path / "a.zarr", arrays, ends)
    result = run("export", f"path={store}", f"out={tmp_path / 'dataset'}", *words)
    assert result.returncode == 0 and not result.stderr, result
    assert result.stdout.startswith(f"{tmp_path / 'dataset'}: 3 episodes, 51 steps at 10 Hz\n")
    return store, tmp_path / "dataset"


def test_there_and_back_is_the_same_store(tmp_path):
    store, dataset = exported(tmp_path)
    assert run("convert", f"path={dataset}", f"out={tmp_path / 'b.zarr'}").returncode == 0
    assert content_hash(store) == content_hash(tmp_path / "b.zarr")


def test_nobody_guesses_the_rate_of_a_recording_of_ones_own(tmp_path):
    store = write_store(tmp_path / "arm.zarr", *arm_arrays(episodes=2, steps=9))
    words = ("export", f"path={store}", f"out={tmp_path / 'dataset'}")
    assert mistake(*words) == f"error: path={store}: states no steps per second; give fps="
    assert not (tmp_path / "dataset").exists()
    assert run(*words, "fps=25").returncode == 0
    assert json.loads((tmp_path / "dataset/meta/info.json").read_text())["fps"] == 25


def test_the_embedded_demonstrations_survive_the_journey(tmp_path):
    words = f"path={PUSHT.demonstrations()}", f"out={tmp_path / 'dataset'}"
    assert run("export", *words).returncode == 0
    assert run("convert", f"path={tmp_path / 'dataset'}", f"out={tmp_path / 'b.zarr'}").returncode == 0
    assert content_hash(PUSHT.demonstrations()) == content_hash(tmp_path / "b.zarr")


def test_a_store_without_contacts_and_in_float64_comes_back_as_it_was(tmp_path):
    arrays, ends = small_arrays()
    del arrays["n_contacts"]
    store = write_plain(tmp_path / "a.zarr", {name: values.astype(np.float64) for name, values in arrays.items()}, ends)
    assert run("export", f"path={store}", f"out={tmp_path / 'dataset'}").returncode == 0
    assert run("convert", f"path={tmp_path / 'dataset'}", f"out={tmp_path / 'b.zarr'}").returncode == 0
    assert content_hash(store) == content_hash(tmp_path / "b.zarr")
    assert open_store(tmp_path / "b.zarr")["action"].dtype == np.float64


def test_what_a_policy_sees(tmp_path):
    store, dataset = exported(tmp_path)
    demos, steps = open_store(store), parquet.read_table(dataset / "data/chunk-000/file-000.parquet")
    columns = {name: np.array(steps[name].to_pylist()) for name in steps.column_names}
    np.testing.assert_array_equal(columns["action"], demos["action"])
    np.testing.assert_array_equal(columns["observation.state"], demos["state"][:, :2])
    np.testing.assert_allclose(
        columns["observation.environment_state"], corners_of(demos["state"].astype(float)), atol=1e-4
    )
    np.testing.assert_array_equal(columns["episode_index"], np.repeat([0, 1, 2], LENGTHS))
    np.testing.assert_array_equal(columns["frame_index"], np.concatenate([np.arange(n) for n in LENGTHS]))
    np.testing.assert_allclose(columns["timestamp"], columns["frame_index"] / 10, rtol=1e-6)
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    assert set(features) == set(columns)
    for name, feature in features.items():
        assert feature["shape"] == (list(columns[name].shape[1:]) or [1])
        assert feature["names"] is None or len(feature["names"]) == feature["shape"][0]


def test_statistics_are_those_of_the_steps_and_of_each_episode(tmp_path):
    store, dataset = exported(tmp_path)
    action, stats = open_store(store)["action"], json.loads((dataset / "meta/stats.json").read_text())
    assert stats["action"]["count"] == [51]
    np.testing.assert_array_equal(stats["action"]["min"], action.min(axis=0))
    np.testing.assert_allclose(stats["action"]["std"], action.astype(np.float64).std(axis=0))
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(action, 0.9, axis=0))
    episodes = parquet.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in episodes] == list(LENGTHS) and episodes[0]["tasks"] == [PUSHT.instruction]
    assert [row["stats/action/max"] for row in episodes] == [
        action[steps].max(axis=0).tolist() for steps in open_store(store).episodes
    ]
    assert moments(np.array([[1.0], [3.0]])) == {
        "min": [1], "max": [3], "mean": [2], "std": [1], "count": [2],
        "q01": [1.02], "q10": [1.2], "q50": [2], "q90": [2.8], "q99": [2.98],
    }  # fmt: skip


@pytest.mark.parametrize("images", ["stored", "rendered"])
def test_pictures_lose_nothing(tmp_path, images):
    store, dataset = exported(tmp_path, 96, f"images={images}")
    demos = open_store(store)
    column = parquet.read_table(dataset / "data/chunk-000/file-000.parquet")["observation.image"].to_pylist()
    shown = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in column]
    drawn = [render_state(row, size=96) for row in demos["state"]]
    expected = demos.frames["img"].as_bytes().numpy() if images == "stored" else drawn
    np.testing.assert_array_equal(shown, expected)
    stats = json.loads((dataset / "meta/stats.json").read_text())["observation.image"]
    np.testing.assert_allclose(np.ravel(stats["mean"]), np.mean(expected, axis=(0, 1, 2)) / 255)


@pytest.mark.parametrize("venv", each_lerobot())
def test_lerobot_loads_it(tmp_path, venv):
    needs("lerobot", venv)
    store, dataset = exported(tmp_path, 96, "images=stored")
    demos = open_store(store)
    corners = corners_of(demos["state"].astype(np.float64)).astype(np.float32)
    table = parquet.read_table(dataset / "data/chunk-000/file-000.parquet")
    points = table["observation.environment_state"].to_pylist()
    np.testing.assert_allclose(points, corners, atol=1e-4)
    arrays = {"action": demos["action"], "state": demos["state"], "corners": np.array(points, np.float32)}
    np.savez(tmp_path / "a.npz", img=demos.frames["img"].as_bytes(), ends=demos.episode_ends, **arrays)
    peers("-c", LOAD, str(dataset), str(tmp_path / "a.npz"), PUSHT.instruction, str(tmp_path / "left"), venv=venv)


def test_mistakes_leave_nothing_behind(tmp_path, monkeypatch):
    arrays, ends = small_arrays()
    store = write_plain(tmp_path / "a.zarr", arrays, ends)
    words = ("export", f"path={store}", f"out={tmp_path / 'out'}")
    assert "unknown images 'store'; did you mean 'stored'?" in mistake(*words, "images=store")
    assert "data/img is missing" in mistake(*words, "images=stored")
    assert "exists already" in mistake("export", f"path={store}", f"out={store}")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert mistake(*words) == "error: export needs pyarrow: pip install 'immiscible-policy[lerobot]'"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
