"""`validate` passes what is sound and lists everything that is not, with its place."""

import numpy as np
import pytest
import zarr

from immiscible_policy.demos import validate, write_store
from immiscible_policy.demos.checks import outlier_problems
from tests.demos.commands import mistake, run
from tests.demos.stores import PUSHT, small_arrays, write_plain


def problems(path):
    return validate.problems(path, PUSHT.columns, PUSHT.problems)


def test_a_sound_store_gets_a_clean_bill(tmp_path):
    for zarr_format in (2, 3):
        path = write_plain(tmp_path / f"{zarr_format}.zarr", *small_arrays(image=4), zarr_format=zarr_format)
        result = run("validate", f"path={path}")
        assert result.returncode == 0 and not result.stderr
        assert result.stdout == f"{path}: 3 episodes, 51 steps, nothing wrong\n"


VALUES = {
    "action": ("action", (20, 1), 512.5, "[1] is 512.5 at step 20 (episode 1, its step 8); an action"),
    "agent": ("state", (50, 0), -0.01, "[0] is -0.01 at step 50 (episode 2, its step 8); agent and"),
    "block": ("state", (0, 3), 600, "[3] is 600 at step 0 (episode 0, its step 0); agent and"),
    "nan": ("state", (3, 4), np.nan, "[4] is nan at step 3 (episode 0, its step 3)"),
    "contacts": ("n_contacts", (3, 0), -1, "[0] is -1 at step 3 (episode 0, its step 3); it counts"),
    "image": ("img", (30, 1, 2, 0), 256, "[1, 2, 0] is 256 at step 30 (episode 1, its step 18); pixels"),
    "image nan": ("img", (30, 1, 2, 0), np.nan, "[1, 2, 0] is nan at step 30 (episode 1, its step 18)"),
}


@pytest.mark.parametrize("name", VALUES)
def test_bad_values_are_placed(tmp_path, name):
    array, index, value, says = VALUES[name]
    arrays, ends = small_arrays(image=4)
    arrays[array][index] = value
    path = write_plain(tmp_path / "a.zarr", arrays, ends)
    result = run("validate", f"path={path}")
    assert result.returncode == 2 and result.stdout.startswith(f"data/{array}{says}")
    assert result.stderr.startswith(f"error: {path}: {len(result.stdout.splitlines())} problem")


def test_bad_values_are_counted(tmp_path):
    arrays, ends = small_arrays()
    arrays["action"][20:23] = 900
    (line,) = problems(write_plain(tmp_path / "a.zarr", arrays, ends))
    assert line.endswith("; an action should lie in 0..512; 6 such values in all")


def test_an_action_of_1e38_is_named_and_ordinary_ones_are_not(tmp_path):
    arrays, ends = small_arrays()
    arrays["action"][45, 1] = 1e38
    (line,) = problems(write_plain(tmp_path / "a.zarr", arrays, ends))
    assert line.startswith("data/action[1] is 1e+38 at step 45 (episode 2, its step 3); half of them lie within ")
    counts = np.linspace(0, 1e9, 51)[:, None]  # large, and evenly so
    assert not list(outlier_problems("clock", counts, ends))


def test_keypoints_far_from_the_pose_are_found_and_near_ones_are_not(tmp_path):
    arrays, ends = small_arrays()
    arrays["keypoint"][:, :, 0] += 2.9
    assert not list(problems(write_plain(tmp_path / "near.zarr", arrays, ends)))
    arrays["keypoint"][45:47, 4] += 3
    (line,) = problems(write_plain(tmp_path / "far.zarr", arrays, ends))
    assert line.startswith("data/keypoint[4] lies 6.6 px from where data/state puts it (up to 3 px are")
    assert line.endswith(" at step 45 (episode 2, its step 3); 2 such steps in all")


def test_images_between_0_and_1_are_noticed(tmp_path):
    arrays, ends = small_arrays(image=4)
    arrays["img"] /= 255
    (line,) = problems(write_plain(tmp_path / "a.zarr", arrays, ends))
    assert line == "data/img holds pixels of 0..1; they should be 0..255, multiply by 255"


def test_a_camera_that_shows_nothing_is_noticed(tmp_path):
    arrays, ends = small_arrays(image=4)
    arrays["img"] *= 0
    (line,) = problems(write_plain(tmp_path / "a.zarr", arrays, ends))
    assert line == "data/img shows nothing but black; leave it out"


def test_numbers_that_float32_does_not_tell_apart_are_noticed(tmp_path):
    """Encoder ticks around 1e9 are four numbers there; what is constant but for rounding is none of its business."""
    ticks = np.stack([np.arange(200), 10**9 + np.arange(200)], axis=1)
    fine = np.stack([np.linspace(0, 1, 200), np.full(200, 0.2) + 1e-7 * (np.arange(200) % 2), np.arange(200) + 1e6], 1)
    assert len(np.unique(ticks[:, 1].astype(np.float32))) < 8 < 190 < len(np.unique(fine[:, 2].astype(np.float32)))
    (line,) = validate.problems(write_store(tmp_path / "a.zarr", {"action": fine, "ticks": ticks}, [200]))
    assert line == (
        "data/ticks[1] varies over 1000000000..1000000199 alone, which float32 hardly resolves; subtract its middle"
    )


def test_everything_wrong_is_listed(tmp_path):
    path = write_plain(tmp_path / "a.zarr", *small_arrays(image=4))
    (path / "data/action/2.0").unlink()
    (path / "data/action/4.0").unlink()
    (path / "data/state/1.0").write_bytes(b"garbage, not blosc")
    (path / "data/state/3.0").write_bytes(b"")
    (path / "data/img/0.0.0.0").unlink()
    result = run("validate", f"path={path}")
    assert result.returncode == 2 and result.stderr == f"error: {path}: 4 problems found\n"
    lines = result.stdout.splitlines()
    assert lines[0].startswith("chunk file data/state/1.0 (steps 7 to 13) cannot be decoded")
    assert lines[1].startswith("chunk file data/state/3.0 (steps 21 to 27) cannot be decoded")
    assert lines[2].startswith("chunk file data/action/2.0 (steps 14 to 20) is missing, 2 of 8 of data/act")
    assert lines[3].startswith("chunk file data/img/0.0.0.0 (steps 0 to 6) is missing, 1 of 8 of data/img")


def test_an_undecodable_image_chunk_is_named_and_the_others_are_still_read(tmp_path):
    arrays, ends = small_arrays(image=4)
    arrays["img"][50] = -1
    path = write_plain(tmp_path / "a.zarr", arrays, ends)
    (path / "data/img/2.0.0.0").write_bytes(b"")
    first, second = problems(path)
    assert first.startswith("chunk file data/img/2.0.0.0 (steps 14 to 20) cannot be decoded")
    assert second.startswith("data/img[0, 0, 0] is -1 at step 50")


def test_structure_is_checked_first(tmp_path):
    arrays, ends = small_arrays()
    arrays["action"] = arrays["action"][:, :1]
    del arrays["keypoint"]
    lines = list(problems(write_plain(tmp_path / "a.zarr", arrays, ends)))
    assert len(lines) == 2
    assert lines[0].startswith("data/keypoint is missing")
    assert lines[1] == "data/action has shape (51, 1); it should be (T, 2)"


def test_pictures_with_the_channels_first_are_named(tmp_path):
    arrays, ends = small_arrays(image=4)
    front = np.moveaxis(arrays["img"], -1, 1).astype(np.uint8)
    (line,) = validate.problems(write_plain(tmp_path / "a.zarr", arrays | {"front": front}, ends))
    assert line == "data/front has shape (51, 3, 4, 4); pictures are (T, H, W, 3), channels last"


@pytest.mark.parametrize("ends", [[12, 12, 51], [12, 40], [12, 90]])
def test_episode_ends_are_checked(tmp_path, ends):
    (line,) = problems(write_plain(tmp_path / "a.zarr", small_arrays()[0], ends))
    assert line.startswith("meta/episode_ends")


def test_no_store_is_one_problem(tmp_path):
    zarr.create_group(tmp_path / "bare.zarr", zarr_format=3)
    result = run("validate", f"path={tmp_path / 'bare.zarr'}")
    assert "meta/episode_ends is missing" in result.stdout
    assert result.stderr.endswith(": 1 problem found\n")
    assert mistake("validate", f"path={tmp_path / 'nowhere'}").endswith("nowhere: 1 problem found")


def test_the_human_store_passes(human_store):
    assert not list(problems(human_store))
