"""Frames of an image policy: stored bytes, or drawn from the states; the two agree where both are there."""

import numpy as np
import pytest
import torch

from immiscible_envs.rendering import render_state
from immiscible_policy.demos import StoreError, content_hash, make_windows, open_store, write_store
from immiscible_policy.demos.frames import rendered_frames, stored_frames
from immiscible_policy.demos.mirror import mirror
from tests.demos.stores import small_arrays, write_plain


def opened(tmp_path, change=lambda arrays: None, image=6):
    arrays, ends = small_arrays(image=image)
    change(arrays)
    return open_store(write_plain(tmp_path / "a.zarr", arrays, ends)), arrays


def test_stored_frames_are_the_stored_bytes(tmp_path):
    demos, arrays = opened(tmp_path)
    (frames,) = stored_frames(demos).values()
    assert frames.dtype == torch.uint8
    np.testing.assert_array_equal(frames, arrays["img"])
    some = stored_frames(demos.select([2, 0]))["img"]
    assert torch.equal(some, torch.cat([frames[42:51], frames[:12]]))


def test_rendered_frames_are_pictures_of_the_states(tmp_path):
    demos, _ = opened(tmp_path, image=0)
    frames = rendered_frames(demos)["img"]
    assert frames.shape == (51, 96, 96, 3)
    np.testing.assert_array_equal(frames[20], render_state(demos.state[20]))


def test_rendered_and_recorded_frames_agree(human_store):
    """Within the renderer's tolerance: a fraction of a grey level on average, for images are a substep late."""
    demos = open_store(human_store).select([3, 150])
    stored, rendered = stored_frames(demos)["img"], rendered_frames(demos)["img"]
    difference = (stored.float() - rendered.float()).abs().mean(dim=(1, 2, 3))
    assert float(difference.mean()) < 0.15 and float(difference.max()) < 0.5


def test_a_mirrored_store_shows_mirrored_frames(tmp_path):
    def draw(arrays):
        arrays["img"] = np.stack([render_state(state) for state in arrays["state"]])

    demos, _ = opened(tmp_path, draw)
    both = mirror(demos)
    stored, rendered = stored_frames(both)["img"], rendered_frames(both)["img"]
    assert len(stored) == 102 and float((stored.float() - rendered.float()).abs().mean()) < 1


def test_further_cameras_are_found_by_name(tmp_path):
    wrist = np.random.default_rng(1).integers(0, 256, (51, 5, 7, 3)).astype(np.uint8)
    demos, arrays = opened(tmp_path, lambda arrays: arrays.update(wrist=wrist))
    frames = stored_frames(demos.select([1]), ["wrist", "img"])
    assert list(frames) == ["wrist", "img"]
    np.testing.assert_array_equal(frames["wrist"], wrist[12:42])
    np.testing.assert_array_equal(frames["img"], arrays["img"][12:42])
    assert content_hash(demos, images=True) != content_hash(opened(tmp_path / "b")[0], images=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.update(img=arrays["img"] / 255), r"data/img holds 0\.\.1; pixels should be 0\.\.255"),
        (lambda arrays: arrays.update(img=arrays["img"] - 1), r"data/img holds -1\.\.254"),
        (lambda arrays: arrays.update(img=arrays["img"] * np.nan), "data/img holds nan"),
        (lambda arrays: arrays.pop("img"), "data/img is missing, it has no camera at all; images=rendered"),
    ],
)
def test_frames_that_cannot_be_used_are_refused_in_one_line(tmp_path, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        stored_frames(opened(tmp_path, change)[0])
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data/wrist is missing, it has data/img"):
        stored_frames(opened(tmp_path)[0], ["img", "wrist"])


def test_a_camera_of_another_length_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"data/wrist is uint8 \(50, 4, 4, 3\)"):
        opened(tmp_path, lambda arrays: arrays.update(wrist=np.zeros((50, 4, 4, 3), np.uint8)))


def test_windows_name_the_frames_that_they_show(tmp_path):
    arrays, ends = small_arrays()
    demos = open_store(write_store(tmp_path / "a.zarr", arrays, ends))
    frames = {"img": torch.arange(51, dtype=torch.uint8)[:, None, None, None].expand(51, 2, 2, 3)}
    windows = make_windows(demos, "image", frames=frames)
    plain = make_windows(demos, "state")
    assert torch.equal(windows.obs, plain.obs[..., :2]) and torch.equal(windows.action, plain.action)
    shown = windows.footage.frames["img"][windows.footage.step][..., 0, 0, 0]
    assert torch.equal(demos_positions(demos)[shown.long()], windows.obs)
    batch = windows[torch.tensor([4, 0, 4])].to("cpu")
    assert torch.equal(batch.footage.step, windows.footage.step[[4, 0, 4]])
    assert batch.footage.frames["img"] is frames["img"] and plain.footage is None


def demos_positions(demos):
    return torch.from_numpy(demos.state[:, :2])


@pytest.mark.parametrize(("obs", "frames", "said"), [("image", None, "needs frames"), ("state", {}, "takes no frames")])
def test_frames_belong_to_images_alone(tmp_path, obs, frames, said):
    with pytest.raises(ValueError, match=said):
        make_windows(opened(tmp_path)[0], obs, frames=frames)
