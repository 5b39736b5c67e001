"""The laboratory on policies of somebody's own data: actions under another key, of one number, without a simulator."""

import shutil

import numpy as np
import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.store import write_store
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.store.run import RunDirectory
from tests.training.helpers import here


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a store whose `action` is not what it trains on."""
    folder = tmp_path_factory.mktemp("own")
    time = np.arange(80, dtype=np.float32)
    arrays = {
        "qpos": np.stack([np.sin(time), np.cos(time)], 1),
        "cmd": np.sin(time)[:, None],
        "action": time[:, None] + 1e3,
    }
    store = write_store(folder / "own.zarr", arrays, np.array([40, 80]))
    words = (
        "task=none",
        f"data={store}",
        "obs=qpos",
        "action=cmd",
        "experiment=debug",
        "steps=2",
        "checkpoint_every=2",
    )
    result = here("train_policy.py", *words, f"out={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return RunDirectory(folder / "run").seed(0).newest()


def test_windows_are_those_of_the_run_and_where_it_found_them(trained, tmp_path):
    actions = lab_runs.windows_of(trained, None).action
    assert actions.shape[-1] == 1 and actions.abs().max() <= 1
    moved = shutil.copytree(trained.config["data"], tmp_path / "moved.zarr")
    assert torch.equal(lab_runs.windows_of(trained, moved).action, actions)
    with pytest.raises(CommandError, match="data=nowhere.zarr: the demonstrations of .* give data=PATH"):
        lab_runs.windows_of(trained, "nowhere.zarr")


def test_bijection_measures_it_and_leaves_out_rollouts(trained, tmp_path):
    words = ["perturbations=2", "observations=3", "windows=8", "sampling_steps=2", f"out={tmp_path}"]
    result = here("-m", "immiscible_policy.lab", "bijection", f"runs={trained.path.parents[2]}", *words)
    assert result.returncode == 0, result.stderr
    assert "correlation with the start noise" in result.stdout and "change of the score" not in result.stdout
