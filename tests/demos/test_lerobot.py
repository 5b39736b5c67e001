"""LeRobot datasets of both formats become the store they came from."""

import json
import sys

import numpy as np
import pytest

from immiscible_envs.lerobot import CORNERS, fit_pose
from immiscible_policy.demos import open_store
from immiscible_policy.demos.validate import problems
from tests.demos.commands import mistake, run
from tests.demos.stores import LENGTHS, PUSHT, small_arrays

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def corners_of(state: np.ndarray) -> np.ndarray:
    """The T's corners by rotation matrices, (T, 16)."""
    cos, sin = np.cos(state[:, 4]), np.sin(state[:, 4])
    turn = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
    local = [(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)]
    return (np.einsum("tij,pj->tpi", turn, local) + state[:, None, 2:4]).reshape(len(state), 16)


def columns_of() -> dict[str, np.ndarray]:
    arrays, _ = small_arrays()
    return {
        "observation.state": arrays["state"][:, :2],
        "observation.environment_state": corners_of(arrays["state"].astype(np.float64)).astype(np.float32),
        "action": arrays["action"],
        "episode_index": np.repeat(np.arange(3), LENGTHS),
        "frame_index": np.concatenate([np.arange(n) for n in LENGTHS]),
        "next.reward": np.zeros(sum(LENGTHS), np.float32),
    }


def table(columns, rows):
    return pyarrow.table({
        name: pyarrow.array(list(values[rows]) if values.ndim > 1 else values[rows])
        for name, values in columns.items()
    })  # fmt: skip


def write_dataset(path, columns, version="v3.0", info=None):
    """A file per episode for v2, one file of all rows, shuffled, for v3."""
    chunk = path / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    if version.startswith("v2"):
        for episode in range(3):
            rows = np.flatnonzero(columns["episode_index"] == episode)
            parquet.write_table(table(columns, rows), chunk / f"episode_{episode:06d}.parquet")
    else:
        rows = np.random.default_rng(0).permutation(len(columns["episode_index"]))
        parquet.write_table(table(columns, rows), chunk / "file-000.parquet")
    features = {name: {"shape": list(values.shape[1:]) or [1]} for name, values in columns.items()}
    counts = {"total_episodes": 3, "total_frames": 51}
    described = {"codebase_version": version, "fps": 10, "features": features} | counts
    (path / "meta").mkdir()
    (path / "meta" / "info.json").write_text(json.dumps(described | (info or {})))
    return path


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_both_formats_give_the_original_back(tmp_path, version):
    dataset = write_dataset(tmp_path / "dataset", columns_of(), version)
    out = tmp_path / "new" / "a.zarr"
    result = run("convert", f"path={dataset}", f"out={out}", "task=pusht")
    told = f"{out}: 3 episodes, 51 steps of state, action, keypoint (task=pusht)\n"
    assert (result.returncode, result.stdout) == (0, told)
    arrays, ends = small_arrays()
    demos = open_store(out)
    np.testing.assert_array_equal(demos["action"], arrays["action"])
    np.testing.assert_array_equal(demos["state"][:, :2], arrays["state"][:, :2])
    np.testing.assert_allclose(demos["state"][:, 2:], arrays["state"][:, 2:], atol=1e-4)
    np.testing.assert_allclose(demos["keypoint"], arrays["keypoint"], atol=1e-3)
    np.testing.assert_array_equal(demos.episode_ends, ends)
    assert "n_contacts" not in demos.arrays and not list(problems(out, PUSHT.columns, PUSHT.problems))


def test_the_fit_recovers_any_pose_and_averages_noise():
    random = np.random.default_rng(1)
    pose = np.column_stack([random.uniform(0, 512, (500, 2)), random.uniform(0, 2 * np.pi, 500)])
    corners = corners_of(np.concatenate([pose[:, :2], pose], axis=1)).reshape(-1, 8, 2)
    fitted, error = fit_pose(corners)
    np.testing.assert_allclose(fitted, pose, atol=1e-10)
    assert error.max() < 1e-10
    noisy, error = fit_pose(corners + random.normal(0, 0.5, corners.shape))
    assert np.abs(noisy - pose)[:, :2].mean() < 0.5 and (error > 0.1).all()
    np.testing.assert_allclose(fit_pose(CORNERS[None])[0] % (2 * np.pi), 0, atol=1e-12)


def without(name):
    return {key: values for key, values in columns_of().items() if key != name}


def change(name, index, value):
    columns = columns_of()
    columns[name] = columns[name].copy()
    columns[name][index] = value
    return columns


def drop_rows(rows):
    return {name: np.delete(values, rows, axis=0) for name, values in columns_of().items()}


ENVIRONMENT = "observation.environment_state"
REFUSED = {
    "images only": (without(ENVIRONMENT), {}, "so the positions of agent and block are unknown"),
    "no action": (without("action"), {}, "no action, so the positions"),
    "other corners": (change(ENVIRONMENT, (20, slice(None)), 7), {}, "of episode 1, frame 8 is not the T's"),
    "nan corner": (change(ENVIRONMENT, (20, 3), np.nan), {}, "of episode 1, frame 8 is not the T's eight"),
    "nan action": (change("action", (20, 1), np.nan), {}, "data/action[1] is nan at step 20 (episode 1"),
    "lost frame": (drop_rows([20]), {}, "episode 1 has no frame 8"),
    "lost last frame": (drop_rows([50]), {}, "total_frames should be 51, the parquet files hold 50"),
    "lost episode": (drop_rows(range(42, 51)), {}, "total_episodes should be 3, the parquet files hold 2"),
    "old format": (columns_of(), {"codebase_version": "v1.6"}, "format v1.6; formats v2 and v3"),
    "other rate": (columns_of(), {"fps": 30}, "recorded at 30 Hz"),
    "no features": (columns_of(), {"features": None}, "not a dataset's description"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(tmp_path, name):
    columns, info, says = REFUSED[name]
    dataset = write_dataset(tmp_path / "dataset", columns, info=info)
    assert says in mistake("convert", f"path={dataset}", f"out={tmp_path / 'a.zarr'}", "task=pusht")
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_broken_files_are_named(tmp_path):
    words = ("convert", f"path={tmp_path / 'dataset'}", f"out={tmp_path / 'a.zarr'}")
    assert "meta/info.json is missing" in mistake(*words)
    dataset = write_dataset(tmp_path / "dataset", columns_of())
    file = dataset / "data/chunk-000/file-000.parquet"
    described = columns_of()
    del described["frame_index"]
    parquet.write_table(table(described, slice(None)), file)
    assert f"{file}: has no column frame_index" in mistake(*words)
    parquet.write_table(table(columns_of() | {"action": np.zeros((51, 3), np.float32)}, slice(None)), file)
    assert f"{file}: column action does not hold 2 numbers per frame" in mistake(*words)
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: cannot be read" in mistake(*words)
    file.unlink()
    assert "no parquet file under data/" in mistake(*words)
    (dataset / "meta/info.json").write_text("{")
    assert "not a dataset's description" in mistake(*words)
    (tmp_path / "a.zarr").mkdir()
    assert "exists already" in mistake(*words)


def test_without_pyarrow_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path / "dataset", columns_of())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = mistake("convert", f"path={dataset}", f"out={tmp_path / 'a.zarr'}")
    assert line == "error: a data set of LeRobot needs pyarrow: pip install 'immiscible-policy[lerobot]'"
