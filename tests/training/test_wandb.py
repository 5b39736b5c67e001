"""What Weights & Biases is given: a run for each seed, grouped, and found again by a resumed training."""

import sys
from types import SimpleNamespace

import pytest

from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.seed import _wandb_run

OPTIONS = {"task": {"name": "pusht"}, "method": "flow", "noise": {"name": "knn", "k": 2}, "steps": 3}


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Begin the wandb run of a seed; what `wandb.init` is given."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=dict, errors=SimpleNamespace(Error=RuntimeError)))
    for name in ("WANDB_PROJECT", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)

    def begin(seed, mode="offline"):
        return _wandb_run(SimpleNamespace(wandb=mode, identity=OPTIONS), RunDirectory(tmp_path / "knn").seed(seed))

    return begin


def test_the_seeds_of_a_run_are_a_group_of_runs_of_their_own(begun):
    one, other = begun(0), begun(1)
    assert one["group"] == other["group"] == "knn" and one["project"] == "immiscible-policy"
    assert one["id"] != other["id"] and one["name"] == "knn-seed0"
    assert one["tags"] == ["pusht", "flow", "knn"] and one["config"] == OPTIONS | {"train_seed": 0}


def test_a_resumed_training_continues_its_run(begun):
    assert begun(3) == begun(3) and begun(3)["resume"] == "allow"


def test_the_environment_names_project_and_group(begun, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "arms")
    monkeypatch.setenv("WANDB_RUN_GROUP", "tuesday")
    assert (begun(0)["project"], begun(0)["group"]) == ("arms", "tuesday")


def test_disabled_begins_nothing(begun):
    assert begun(0, "disabled") is None
