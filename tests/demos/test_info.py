"""`info` counts and measures what is there, and draws it."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest

from immiscible_policy.demos import content_hash, open_store, write_store
from immiscible_policy.demos.info import describe, net_rotation
from tests.demos.commands import mistake, run
from tests.demos.stores import small_arrays


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "a.zarr", *small_arrays(image=4))


def test_net_rotation_counts_turns_within_episodes(store):
    demos = open_store(store)
    per_step = np.repeat([0.5, -0.3, 0.0], demos.lengths)
    angles = np.cumsum(per_step) % (2 * np.pi)
    turning = dataclasses.replace(demos, state=np.concatenate([demos.state[:, :4], angles[:, None]], axis=1))
    np.testing.assert_allclose(net_rotation(turning), [11 * 0.5, 29 * -0.3, 0.0], atol=1e-5)
    text = "\n".join(describe(turning))
    assert "clockwise in 33.3% of the episodes, counter-clockwise in 33.3%" in text


def test_it_says_what_is_there(capsys, store):
    result = run(capsys, "info", f"path={store}")
    lines = {line[:19].strip(): line[20:] for line in result.out.splitlines()}
    demos = open_store(store)
    assert result.code == 0 and not result.err
    assert lines["episodes"] == "3" and lines["steps"].startswith("51 ")
    assert lines["episode length"] == "9 to 30 steps, median 12"
    assert lines["content hash"].startswith(content_hash(demos))
    assert lines["action, y"] == f"{demos.action[:, 1].min():.4g} to {demos.action[:, 1].max():.4g} (float32)"
    assert lines["img, 4 x 4"] == "0 to 255 (float32)"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_it_draws(capsys, tmp_path, store, suffix):
    picture = tmp_path / f"picture.{suffix}"
    assert run(capsys, "info", f"path={store}", f"out={picture}").code == 0
    assert picture.stat().st_size > 10_000


def test_the_picture_is_not_blank(capsys, tmp_path, store):
    run(capsys, "info", f"path={store}", f"out={tmp_path / 'picture.png'}")
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert pixels.shape[:2] == (1290, 1650)
    assert 0.02 < (pixels[..., :3] < 1).any(axis=-1).mean() < 0.5


def test_mistakes_draw_nothing(capsys, tmp_path, store):
    assert "ends in .png, .pdf, .svg" in mistake(capsys, "info", f"path={store}", f"out={tmp_path / 'a.bmp'}")
    assert "does not exist" in mistake(capsys, "info", f"path={store}", f"out={tmp_path / 'no' / 'a.png'}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
