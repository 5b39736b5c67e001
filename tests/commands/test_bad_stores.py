"""Demonstrations that cannot be trained on: one line that says what is wrong, exit code 2, and nothing is created."""

import json
import shutil

import numpy as np
import pytest
import zarr

from tests.demos.arm import arm_arrays, write_lerobot, write_video, zipped
from tests.demos.stores import write_plain
from tests.training.helpers import here, refused

parquet = pytest.importorskip("pyarrow.parquet")

FRONT = "observation.images.front"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The same few episodes with a camera, as a store and as data sets of both formats."""
    place = tmp_path_factory.mktemp("sound")
    arrays, ends = arm_arrays(episodes=3, steps=12, side=16)
    del arrays["wrist"]
    write_plain(place / "arm.zarr", arrays, ends)
    write_lerobot(place / "v2", arrays, ends, "v2.1")
    write_lerobot(place / "v3", arrays, ends, "v3.0")
    return place


def spoil_zarr(change):
    """Write the store again with other arrays or ends."""

    def spoil(path):
        arrays, ends = arm_arrays(episodes=3, steps=12, side=16)
        shutil.rmtree(path)
        changed = change(arrays, ends)
        write_plain(path, arrays, ends if changed is None else changed)

    return spoil


def without(key):
    def change(arrays, ends):
        del arrays[key]

    return spoil_zarr(change)


def put(key, index, value):
    def change(arrays, ends):
        if key == "front":
            arrays[key] = arrays[key].astype(np.float32)
        arrays[key][index] = value

    return spoil_zarr(change)


def texts(path):
    data = zarr.open_group(path)["data"]
    del data["action"]
    array = data.create_array("action", shape=(39,), chunks=(39,), dtype=str)
    array[:] = np.array(["left"] * 39)


def shorter(path):
    array = zarr.open_array(path, path="data/ee_pose")
    array.resize((30, 5))


def cut(name, keep=0.5):
    def spoil(path):
        file = path / name
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])

    return spoil


def remove(name):
    return lambda path: (path / name).unlink()


def described(**values):
    def spoil(path):
        file = path / "meta/info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def table(name, change):
    def spoil(path):
        parquet.write_table(change(parquet.read_table(path / name)), path / name)

    return spoil


def video(name, steps, side):
    return lambda path: write_video(path / name, np.zeros((steps, side, side, 3), np.uint8))


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
ROWS = "data/chunk-000/file-000.parquet"
MP4 = f"videos/{FRONT}/chunk-000/file-001.mp4"

STORES = {
    "no store": (shutil.rmtree, "does not exist"),
    "no actions": (without("action"), "action=action: there is no action; what fits: ee_pose (T, 5), qpos (T, 7)"),
    "no observation": (without("qpos"), "obs=qpos: there is no qpos; what fits: action (T, 7), ee_pose (T, 5), front"),
    "unequal lengths": (shorter, "the arrays differ in length: data/qpos 39, data/ee_pose 30"),
    "nan": (put("qpos", (20, 3), np.nan), "data/qpos[3] is nan at step 20 (episode 1, its step 8)"),
    "infinite": (put("action", (0, 0), np.inf), "data/action[0] is inf at step 0"),
    "flat cameras": (spoil_zarr(lambda arrays, ends: arrays.update(qpos=arrays["front"][..., 0].repeat(5, 2))),
                     "qpos has shape (T, 16, 80) and dtype uint8; what fits"),
    "channels first": (spoil_zarr(lambda arrays, ends: arrays.update(qpos=np.moveaxis(arrays["front"], -1, 1))),
                       "qpos has shape (T, 3, 16, 16) and dtype uint8 (pictures are (T, H, W, 3), channels last)"),
    "no text": (texts, "action=action: action has shape (T) and dtype"),
    "a camera as action": (spoil_zarr(lambda arrays, ends: arrays.update(action=arrays["front"])),
                           "action has shape (T, 16, 16, 3) and dtype uint8; what fits: ee_pose (T, 5), qpos (T, 7)"),
    "pixels beyond 255": (put("front", (3, 0, 0, 0), 256), "holds 0..256; pixels should be 0..255"),
    "no ends": (lambda path: shutil.rmtree(path / "meta/episode_ends"), "meta/episode_ends is missing"),
    "ends that fall": (spoil_zarr(lambda arrays, ends: ends[[1, 0, 2]]), "does not increase at episode 1"),
    "an empty episode": (spoil_zarr(lambda arrays, ends: ends[[0, 0, 1, 2]]), "does not increase at episode 1"),
    "ends too soon": (spoil_zarr(lambda arrays, ends: ends - 1), "closes at 38, but the arrays hold 39 steps"),
    "ends too late": (spoil_zarr(lambda arrays, ends: ends + 1), "closes at 40, but the arrays hold 39 steps"),
    "fractional ends": (spoil_zarr(lambda arrays, ends: ends + 0.5), "should be a list of at least one whole number"),
    "no chunk": (remove("data/qpos/1.0"), "chunk file data/qpos/1.0 (steps 7 to 13) is missing"),
    "half a chunk": (cut("data/qpos/1.0"), "chunk file data/qpos/1.0 (steps 7 to 13) cannot be decoded"),
    "half a picture": (cut("data/front/1.0.0.0"), "chunk file data/front/1.0.0.0 (steps 7 to 13) cannot be decoded"),
    "broken metadata": (lambda path: (path / "data/qpos/.zarray").write_text("{"), "not a zarr store"),
    "a zip cut short": ("half zip", "is a file, but not a zip archive; fetch it again if it was cut short"),
    "a zip of something else": ("other zip", "not a zarr store"),
}  # fmt: skip
SETS = {
    "no JSON": (lambda path: (path / "meta/info.json").write_text("fps: 10"), "not a dataset's description"),
    "an old format": (described(codebase_version="v1.6"), "format v1.6; formats v2 and v3 can be read"),
    "other counts": (described(total_episodes=4), "total_episodes should be 4, the parquet files hold 3"),
    "no rows": (remove(ROWS), "no parquet file under data/"),
    "half the rows": (cut(ROWS), "file-000.parquet: cannot be read"),
    "no column": (table(ROWS, lambda rows: rows.drop_columns("observation.qpos")), "has no column observation.qpos"),
    "a narrow column": (table(ROWS, lambda rows: rows.set_column(0, "observation.qpos", rows["timestamp"])),
                        "column observation.qpos does not hold 7 numbers per frame"),
    "a frame left out": (table(ROWS, lambda rows: rows.slice(1)), "episode 0 has no frame 0"),
    "no video": (remove(MP4), "file-001.mp4: is missing"),
    "half a video": (cut(MP4), "file-001.mp4: "),
    "a video that ends early": (video(MP4, 5, 16), "file-001.mp4: ends after 5 frames; the episodes in it have more"),
    "a video of another size": (video(MP4, 14, 32), "shows 32 x 32 pixels; meta/info.json says 16 x 16"),
    "no place of a video": (table(EPISODES, lambda rows: rows.drop_columns(f"videos/{FRONT}/file_index")),
                            f"has no column videos/{FRONT}/file_index"),
}  # fmt: skip


def train(data, keys, place):
    words = ("experiment=debug", "task=none", f"obs={keys}", f"data={data}", f"out={place / 'run'}")
    line = refused(here("train_policy.py", *words, "encoder_width=16", "crop=12", "wandb=disabled"))
    assert not (place / "run").exists()
    return line


@pytest.mark.parametrize("kind", STORES)
def test_a_bad_store_is_refused(sound, tmp_path, kind):
    spoil, says = STORES[kind]
    data = tmp_path / "arm.zarr"
    shutil.copytree(sound / "arm.zarr", data)
    if spoil == "half zip":
        archive = zipped(data, tmp_path / "arm.zip")
        cut("arm.zip")(tmp_path)
        data = archive
    elif spoil == "other zip":
        (tmp_path / "other").mkdir()
        (tmp_path / "other/readme.txt").write_text("nothing")
        data = zipped(tmp_path / "other", tmp_path / "arm.zip")
    else:
        spoil(data)
    assert says in train(data, "qpos,ee_pose,front", tmp_path)


@pytest.mark.parametrize("kind", SETS)
def test_a_bad_data_set_of_lerobot_is_refused(sound, tmp_path, kind):
    spoil, says = SETS[kind]
    shutil.copytree(sound / "v3", tmp_path / "set")
    spoil(tmp_path / "set")
    assert says in train(tmp_path / "set", f"observation.qpos,{FRONT}", tmp_path)


def test_a_video_of_format_2_that_is_missing_is_named(sound, tmp_path):
    shutil.copytree(sound / "v2", tmp_path / "set")
    (tmp_path / f"set/videos/chunk-000/{FRONT}/episode_000002.mp4").unlink()
    assert "episode_000002.mp4: is missing" in train(tmp_path / "set", FRONT, tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["obs=qpos,elbow"],
            "obs=elbow: there is no elbow; what fits: action (T, 7), ee_pose (T, 5), front (T, 16, 16",
        ),
        (
            ["obs=qpos", "action=front"],
            "action=front: front has shape (T, 16, 16, 3) and dtype uint8; what fits: action",
        ),
        ([], "obs= is missing: name what the policy sees, one or several of action (T, 7), ee_pose (T, 5)"),
        (["obs=qpos", "episodes=5"], "episodes=5: task=none is scored on the episodes that validation= holds out"),
        (["obs=qpos", "starts=fresh"], "starts=fresh: task=none is scored on the episodes that validation= holds out"),
        (["obs=qpos", "validation=0"], "task=none is scored on the episodes that validation= holds out; give a share"),
        (["obs=qpos", "normalize=some"], "unknown normalize 'some'"),
        (["obs=qpos", "mirror=true"], "mirror=true: task=none has no mirror; leave it out"),
    ],
)
def test_words_that_do_not_fit_are_refused(sound, tmp_path, words, says):
    words = ["task=none", f"data={sound / 'arm.zarr'}", f"out={tmp_path / 'run'}", *words]
    assert says in refused(here("train_policy.py", *words)) and not list(tmp_path.iterdir())
