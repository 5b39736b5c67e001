"""Finished runs as results."""

import json

import pytest

from benchmarks.study import study
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.training.driver import train_run
from tests.training.helpers import write_small_store

TINY = ("down_dims=[8,16]", "step_embed_dim=8", "groups=4", "batch_size=8", "episodes=3", "warmup_steps=1", "steps=1",
        "checkpoint_every=1", "wandb=disabled", "sampling_steps=2")  # fmt: skip


def test_a_result_has_both_arms_their_comparison_and_no_place(tmp_path):
    store = write_small_store(tmp_path / "small.zarr")
    runs = [tmp_path / noise for noise in ("vanilla", "knn")]
    for run in runs:
        train_run(RobotRecipe, compose_config([*TINY, f"data={store}", f"noise={run.name}", f"out={run}"]))
    result = study(*runs, tmp_path / "demo.json")
    assert [arm["run"] for arm in result["arms"].values()] == ["vanilla", "knn"]
    assert result["arms"]["b"]["settings"]["noise"]["name"] == "knn" and result["arms"]["a"]["origin"]["command"]
    assert result["comparison"] and str(tmp_path) not in json.dumps(result["comparison"])
    assert {path.suffix for path in (tmp_path / "demo").iterdir()} >= {".md", ".png"}
    assert study(runs[0], None, tmp_path / "one.json")["summary"]["pooled"]["coverage"]


def test_a_result_is_a_json_file(tmp_path):
    with pytest.raises(ValueError, match=r"name a file that ends in \.json"):
        study(tmp_path, None, tmp_path / "demo")
