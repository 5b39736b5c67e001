"""Frames of an image policy: stored bytes, or drawn from the states; the two agree where both are there."""

import numpy as np
import pytest
import torch

from immiscible_envs.rendering import render_state
from immiscible_policy.demos import Layout, StoreError, content_hash, make_windows, write_store
from tests.demos.stores import PUSHT, opened, small_arrays, write_plain


def written(tmp_path, change=lambda arrays: None, image=6):
    arrays, ends = small_arrays(image=image)
    change(arrays)
    return opened(write_plain(tmp_path / "a.zarr", arrays, ends)), arrays


def test_stored_frames_are_the_stored_bytes(tmp_path):
    demos, arrays = written(tmp_path)
    frames = demos.frames["img"].as_bytes()
    assert frames.dtype == torch.uint8
    np.testing.assert_array_equal(frames, arrays["img"])
    assert torch.equal(demos.select([2, 0]).frames["img"].as_bytes(), torch.cat([frames[42:51], frames[:12]]))


def test_rendered_frames_are_pictures_of_the_states(tmp_path):
    demos, _ = written(tmp_path, image=0)
    frames = PUSHT.frames(demos, "image", "rendered")["img"]
    assert frames.shape == (51, 96, 96, 3)
    np.testing.assert_array_equal(frames[20], render_state(demos["state"][20]))


def test_rendered_and_recorded_frames_agree(human_store):
    """Within the renderer's tolerance: a fraction of a grey level on average, for images are a substep late."""
    demos = opened(human_store).select([3, 150])
    stored, rendered = (PUSHT.frames(demos, "image", source)["img"] for source in ("stored", "rendered"))
    difference = (stored.float() - rendered.float()).abs().mean(dim=(1, 2, 3))
    assert float(difference.mean()) < 0.15 and float(difference.max()) < 0.5


def test_a_mirrored_store_shows_mirrored_frames(tmp_path):
    def draw(arrays):
        arrays["img"] = np.stack([render_state(state) for state in arrays["state"]])

    demos, _ = written(tmp_path, draw)
    both = PUSHT.mirror(demos)
    stored, rendered = (PUSHT.frames(both, "image", source)["img"] for source in ("stored", "rendered"))
    assert len(stored) == 102 and float((stored.float() - rendered.float()).abs().mean()) < 1


def test_further_cameras_have_their_names(tmp_path):
    wrist = np.random.default_rng(1).integers(0, 256, (51, 5, 7, 3)).astype(np.uint8)
    demos, arrays = written(tmp_path, lambda arrays: arrays.update(wrist=wrist))
    frames = {camera: demos.select([1]).frames[camera].as_bytes() for camera in ("wrist", "img")}
    np.testing.assert_array_equal(frames["wrist"], wrist[12:42])
    np.testing.assert_array_equal(frames["img"], arrays["img"][12:42])
    assert content_hash(demos, images=True) != content_hash(written(tmp_path / "b")[0], images=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.update(img=arrays["img"] / 255),
            r"data/img holds pixels of 0\.\.1; they should be 0\.\.255",
        ),
        (lambda arrays: arrays.update(img=arrays["img"] * 0), "data/img shows nothing but black; leave it out"),
        (lambda arrays: arrays.update(img=arrays["img"] - 1), r"data/img holds -1\.\.254"),
        (lambda arrays: arrays.update(img=arrays["img"] * np.nan), "data/img holds nan"),
        (lambda arrays: arrays.pop("img"), "data/img is missing; images=rendered"),
        (lambda arrays: arrays.update(img=arrays["img"][:, :40]), "the frames are 40 x 96, PushT shows 96 x 96"),
    ],
)
def test_frames_that_cannot_be_used_are_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        PUSHT.frames(written(tmp_path, change, image=96)[0], "image")
    assert "\n" not in str(caught.value)


def test_a_camera_of_another_length_is_refused(tmp_path):
    with pytest.raises(StoreError, match="the arrays differ in length: .* data/wrist 50"):
        written(tmp_path, lambda arrays: arrays.update(wrist=np.zeros((50, 4, 4, 3), np.uint8)))


def test_windows_name_the_frames_that_they_show(tmp_path):
    demos = opened(write_store(tmp_path / "a.zarr", *small_arrays()))
    frames = {"img": torch.arange(51, dtype=torch.uint8)[:, None, None, None].expand(51, 2, 2, 3)}
    place, layout = demos["state"][:, :2], Layout(16, 2, 8)
    windows = make_windows(place, demos["action"], demos.episode_ends, layout, frames)
    plain = make_windows(place, demos["action"], demos.episode_ends, layout)
    assert torch.equal(windows.obs, plain.obs) and torch.equal(windows.action, plain.action)
    shown = windows.footage.frames["img"][windows.footage.step][..., 0, 0, 0]
    assert torch.equal(torch.from_numpy(place)[shown.long()], windows.obs)
    batch = windows[torch.tensor([4, 0, 4])].to("cpu")
    assert torch.equal(batch.footage.step, windows.footage.step[[4, 0, 4]])
    assert batch.footage.frames["img"] is frames["img"] and plain.footage is None
