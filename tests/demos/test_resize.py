"""Frames of any size: scaled while they are read, and as the policy acts."""

import numpy as np
import pytest
import torch

from immiscible_policy.acting import load_policy
from immiscible_policy.demos import write_store
from immiscible_policy.evaluation.agent import read_spec
from immiscible_policy.network.crop import resize
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.driver import train_run
from tests.demos.arm import arm_arrays
from tests.demos.stores import opened, small_arrays, write_plain


def pictures(count=3, height=30, width=40):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def test_halving_a_frame_of_two_by_two_blocks_gives_the_blocks():
    """Antialiased bilinear weights reach over two blocks; where these are alike nothing changes."""
    blocks = torch.from_numpy(pictures(1, 4, 6)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    scaled = resize(blocks, (16, 24))
    assert scaled.shape == (1, 16, 24, 3) and scaled.dtype == torch.uint8
    inner = scaled.unflatten(2, (6, 4)).unflatten(1, (4, 4))[:, :, 1:3, :, 1:3]
    assert (inner == torch.from_numpy(pictures(1, 4, 6))[:, :, None, :, None]).all()


def test_a_frame_of_that_size_is_the_same_and_leading_axes_stay():
    frames = torch.from_numpy(pictures())
    assert resize(frames, (30, 40)) is frames
    batched = resize(frames.expand(2, 3, 30, 40, 3), (12, 16))
    assert batched.shape == (2, 3, 12, 16, 3)
    assert torch.equal(batched[1], resize(frames, (12, 16))), "a picture does not depend on its neighbours"


def test_demonstrations_are_scaled_while_they_are_read(tmp_path):
    arrays, ends = small_arrays(image=0)
    arrays["wrist"] = pictures(51)
    demos = opened(write_plain(tmp_path / "a.zarr", arrays, ends))
    frames = demos.resized((12, 16)).select([2, 0]).frames["wrist"]
    assert frames.shape == (21, 12, 16, 3)
    expected = resize(torch.from_numpy(arrays["wrist"]), (12, 16))
    assert torch.equal(frames.as_bytes(), torch.cat([expected[42:51], expected[:12]]))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Two cameras of two sizes."""
    place = tmp_path_factory.mktemp("desk")
    arrays, ends = arm_arrays(episodes=4, steps=20, side=24)
    arrays["wrist"] = pictures(len(arrays["qpos"]))
    write_store(place / "arm.zarr", {key: arrays[key] for key in ("qpos", "action", "front", "wrist")}, ends)
    return place


def words(desk, *more):
    given = ["experiment=debug", "task=none", f"data={desk / 'arm.zarr'}", "obs=qpos,front,wrist", "encoder_width=16"]
    return [*given, "steps=2", "checkpoint_every=2", "crop=12", "device=cpu", "validation=0.3", "wandb=disabled", *more]


def test_cameras_of_two_sizes_need_one(desk):
    with pytest.raises(ValueError, match=r"the cameras differ in size: front \(24, 24\), wrist \(30, 40\); .*resize="):
        RobotRecipe.prepare(compose_config(words(desk)))
    with pytest.raises(ValueError, match=r"resize=\[16\]: give height and width"):
        compose_config(words(desk, "resize=[16]"))


def test_a_policy_acts_on_frames_as_its_cameras_take_them(desk):
    """Frames of the cameras' own sizes, and the same scaled beforehand, lead to the same actions."""
    out = desk / "run"
    train_run(RobotRecipe, compose_config(words(desk, "resize=[16,20]", f"out={out}")))
    newest = RunDirectory(out).seed(0).newest()
    assert newest is not None and read_spec(newest).encoder.resize == (16, 20)
    front, wrist, qpos = pictures(1, 24, 24)[0], pictures(1)[0], np.zeros(7)
    acted = []
    for scale in (lambda frame: frame, lambda frame: resize(torch.from_numpy(frame), (16, 20)).numpy()):
        policy = load_policy(out)
        policy.reset(seed=0)
        acted.append(policy.act({"qpos": qpos, "front": scale(front), "wrist": scale(wrist)}))
    np.testing.assert_array_equal(*acted)
