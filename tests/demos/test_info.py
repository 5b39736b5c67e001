"""`info` counts and measures what is there, and draws it."""

import matplotlib.image
import numpy as np
import pytest

from immiscible_policy.commands.demos.info import describe, modes_of
from immiscible_policy.demos import content_hash, write_store
from tests.demos.commands import mistake, run
from tests.demos.stores import PUSHT, changed, opened, small_arrays


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "a.zarr", *small_arrays(image=4))


def test_the_way_of_an_episode_is_its_net_turn(store):
    demos = opened(store)
    per_step = np.repeat([0.5, -0.3, 0.0], demos.lengths)
    angles = np.cumsum(per_step) % (2 * np.pi)
    turning = changed(demos, state=np.concatenate([demos["state"][:, :4], angles[:, None]], axis=1))
    assert modes_of(turning, PUSHT, PUSHT.modes) == [0, 1, 2]
    text = "\n".join(describe(turning, PUSHT))
    assert "1 clockwise, 1 counter-clockwise, 1 undecided" in text


def test_a_store_of_other_keys_is_described_by_its_own_task(tmp_path, write_module):
    write_module("own_reach", REACH)
    path = write_store(tmp_path / "a.zarr", {"position": np.zeros((9, 3)), "action": np.ones((9, 3))}, [4, 9])
    lines = run("info", f"path={path}", "task=own_reach:Reach").stdout.splitlines()
    assert "task                reach" in lines
    for i in range(3):
        assert f"action[{i}]           1, constant (float64)" in lines
        assert f"position[{i}]         0, constant (float64)" in lines
    assert run("validate", f"path={path}", "task=own_reach:Reach").returncode == 0
    line = mistake("info", f"path={path}", "task=own_reach:Reach", f"out={tmp_path / 'a.png'}")
    assert "task=reach has nothing to draw its demonstrations by" in line


REACH = """
from immiscible_policy.tasks import Metric, Task
class Reach(Task):
    name = title = about = measured = "reach"
    max_steps, observations = 10, ("position",)
    metrics = (Metric("return", "return", "sum", lambda reward, info: reward),)
"""


def test_it_says_what_is_there(store):
    result = run("info", f"path={store}")
    lines = {line[:19].strip(): line[20:] for line in result.stdout.splitlines()}
    demos = opened(store)
    assert result.returncode == 0 and not result.stderr
    assert lines["episodes"] == "3" and lines["steps"].startswith("51 ")
    assert lines["episode length"] == "9 to 30 steps, median 12"
    assert lines["content hash"].startswith(content_hash(demos))
    assert lines["action, y"] == f"{demos['action'][:, 1].min():.4g} to {demos['action'][:, 1].max():.4g} (float32)"
    assert lines["img, 4 x 4"] == "0 to 255 (float32)"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_it_draws(tmp_path, store, suffix):
    picture = tmp_path / f"picture.{suffix}"
    assert run("info", f"path={store}", f"out={picture}").returncode == 0
    assert picture.stat().st_size > 10_000


def test_the_picture_is_not_blank(tmp_path, store):
    run("info", f"path={store}", f"out={tmp_path / 'picture.png'}")
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert pixels.shape[:2] == (1290, 1650)
    assert 0.02 < (pixels[..., :3] < 1).any(axis=-1).mean() < 0.5


def test_mistakes_draw_nothing(tmp_path, store):
    assert "ends in .png, .pdf, .svg" in mistake("info", f"path={store}", f"out={tmp_path / 'a.bmp'}")
    assert "does not exist" in mistake("info", f"path={store}", f"out={tmp_path / 'no' / 'a.png'}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
