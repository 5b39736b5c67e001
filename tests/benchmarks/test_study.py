"""Finished runs as results: what training gained, against hand-made cases."""

import pytest

from benchmarks.study import study
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.rows import read_rows
from immiscible_policy.tasks.pusht import PushT
from immiscible_policy.training.driver import train_run
from tests.training.helpers import write_small_store

TINY = ("down_dims=[8,16]", "step_embed_dim=8", "groups=4", "batch_size=8", "episodes=3", "warmup_steps=1",
        "wandb=disabled", "sampling_steps=2", "precision=fp32")  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_small_store(tmp_path_factory.mktemp("store") / "small.zarr")


def trained(out, store, *words):
    train_run(RobotRecipe, compose_config([*TINY, f"data={store}", f"out={out}", *words]))
    return out


def test_a_step_at_learning_rate_zero_gains_nothing(store, tmp_path):
    """The first of one warm-up step has learning rate 0: before and after are the same network, episode by episode."""
    run = trained(tmp_path / "run", store, "steps=1", "checkpoint_every=1")
    result = study(run, None, True, tmp_path / "study.json")["gain"]
    for metric in ("coverage", "reward"):
        assert result[metric]["before"] == result[metric]["after"]
        assert result[metric]["difference"]["estimate"] == 0
    rows = read_rows(run / "seed_0/episodes.csv", PushT.metrics)
    assert result["coverage"]["after"] == pytest.approx(sum(row.metrics["coverage"] for row in rows) / 3)


def test_the_last_checkpoint_counts(store, tmp_path):
    run = trained(tmp_path / "run", store, "steps=4", "checkpoint_every=2", "lr=0.05")
    result = study(run, None, True, tmp_path / "study.json")["gain"]
    rows = read_rows(run / "seed_0/episodes.csv", PushT.metrics)
    last = [row.metrics["reward"] for row in rows if row.checkpoint == 4]
    assert result["reward"]["after"] == pytest.approx(sum(last) / 3)
    estimate = result["reward"]["after"] - result["reward"]["before"]
    assert result["reward"]["difference"]["estimate"] == pytest.approx(estimate)


def test_two_arms_have_no_network_before_training(tmp_path):
    with pytest.raises(ValueError, match="untrained=true"):
        study(tmp_path, tmp_path, True, tmp_path / "study.json")
