"""Every example runs, in at most 60 lines."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from immiscible_policy import load_policy
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.policy import PolicySpec, build_policy
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.plugins.peers import ROOT, needs, peers
from tests.training.helpers import write_small_store

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

WORKSPACE = """
import torch
from tests.plugins.miniature import MiniaturePolicy, batch_of

class Workspace:
    def __init__(self, config):
        assert config.horizon == 8 and "noise" not in config and "k" not in config
        self.model, self.global_step = MiniaturePolicy(), 0

    def run(self):
        self.model.compute_loss(batch_of(self.model))
        loss = self.model.compute_loss
        print("trained with", type(loss).__name__, loss.select, "at step", loss.step())
"""


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss ([0-9.]+)", output)]


def test_there_are_five_and_each_is_short():
    assert len(EXAMPLES) == 5
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)


def here(*words, cwd=ROOT):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("noise", [pytest.param("vanilla", marks=pytest.mark.slow), "knn"])
def test_plain_pytorch_learns(noise):
    done = here("examples/plain_pytorch.py", noise)
    assert done.returncode == 0, done.stderr
    result = losses(done.stdout)
    assert len(result) == 4 and result[-1] < 0.6 * result[0]


def test_torchcfm_learns():
    needs("torchcfm")
    result = losses(peers("examples/torchcfm_flow.py").stdout)
    assert len(result) == 4 and result[-1] < 0.6 * result[0]


def test_diffusers_under_accelerate_learns():
    needs("accelerate")
    result = losses(peers("examples/diffusers_accelerate.py").stdout)
    assert len(result) == 4 and result[-1] < 0.8 * result[0]


class Foresight:
    """A policy whose chunk says of each action for which step it is; the observations are the steps."""

    obs_steps, action_steps = 2, 8

    def __init__(self, seconds):
        self.seconds = seconds

    def benchmark(self):
        return SimpleNamespace(p95=0.02)

    def chunk(self, history):
        time.sleep(self.seconds)
        return history[-1] + np.arange(15)[:, None]


class Clock:
    """A robot that counts its observations and keeps what it is sent."""

    def __init__(self):
        self.observed, self.sent = -1, []

    def observe(self):
        self.observed += 1
        return max(self.observed - 1, 0)  # the loop looks once before its first step

    def send(self, action):
        self.sent.append(int(action[0]))


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_the_control_loop_sends_the_action_of_each_step(capsys, seconds):
    robot, loop = Clock(), runpy.run_path(str(ROOT / "examples/control_loop.py"))
    loop["control"](Foresight(seconds), robot, 100.0, 60)
    late, stale = map(int, re.findall(r"(\d+) (?:ended late|repeated)", capsys.readouterr().out))
    ahead = [step for step, sent in enumerate(robot.sent) if sent == step]
    assert len(robot.sent) == 60 and len(ahead) == 60 - stale and late < 60
    assert all(sent < step for step, sent in enumerate(robot.sent) if step not in ahead)
    assert stale > 0 or seconds == 0.0


def test_the_control_loop_runs_a_policy(tmp_path):
    spec = PolicySpec("keypoints", 20, 2, 16, 2, 8, 1.0, (16, 32), 16, 5, 8, "flow", "velocity", 100)
    metadata = spec_metadata(spec) | {"step": 1, "seed": 0, "config": {"solver": "euler", "sampling_steps": 2}}
    save_checkpoint(tmp_path / "step_000001", metadata, {"ema": build_policy(spec).state_dict()})
    done = here("examples/control_loop.py", str(tmp_path / "step_000001"), "50", "20")
    assert done.returncode == 0, done.stderr
    assert "2 network calls" in done.stdout and "20 steps at 50 Hz" in done.stdout


@pytest.mark.slow
def test_accelerate_pairs_across_two_processes():
    needs("accelerate")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no")
    result = losses(peers(*launch, "examples/diffusers_accelerate.py").stdout)
    assert len(result) == 4 and result[-1] < 0.8 * result[0]


@pytest.fixture
def miniature_checkout(tmp_path):
    """A checkout of Diffusion Policy whose workspace trains the miniature; its path."""
    checkout = tmp_path / "diffusion_policy"
    (checkout / "config").mkdir(parents=True)
    (checkout / "config" / "train_miniature.yaml").write_text(
        "_target_: diffusion_policy.workspace.Workspace\nhorizon: ${eval:'2 * 4'}\nhydra: {run: {dir: outputs}}\n"
    )
    (checkout / "workspace.py").write_text(WORKSPACE)
    return tmp_path


ORIGINAL = str(ROOT / "examples" / "original_diffusion_policy.py")
ORIGINAL_WORDS = ("--config-name=train_miniature", "+noise=knn", "+k=4")


def test_the_original_diffusion_policy_is_trained_by_its_own_workspace(miniature_checkout):
    """In a checkout whose workspace is the miniature: the example composes its configuration and runs it."""
    done = here(ORIGINAL, *ORIGINAL_WORDS, cwd=miniature_checkout)
    assert done.returncode == 0, done.stderr
    assert "trained with ImmiscibleLoss KNN(k=4" in done.stdout and "at step 0" in done.stdout


@pytest.mark.slow
def test_the_example_runs_with_the_older_libraries_of_the_original(miniature_checkout):
    """Beside diffusers 0.35 and zarr 2, with nothing of this project's extras."""
    needs("diffusers", ".venv-original")
    versions = "from importlib.metadata import version as v; print(v('diffusers'), v('zarr')[:2])"
    assert peers("-c", versions, venv=".venv-original").stdout == "0.35.0 2.\n"
    done = peers(ORIGINAL, *ORIGINAL_WORDS, venv=".venv-original", cwd=miniature_checkout)
    assert "trained with ImmiscibleLoss KNN(k=4" in done.stdout and "at step 0" in done.stdout


SHORT = (
    "training.device=cpu", "training.num_epochs=1", "training.max_train_steps=4", "training.max_val_steps=1",
    "dataloader.batch_size=16", "val_dataloader.batch_size=16", "dataloader.num_workers=0",
    "val_dataloader.num_workers=0", "policy.model.down_dims=[16,32]", "policy.model.diffusion_step_embed_dim=16",
    "policy.num_inference_steps=2", "task.env_runner.n_train=1", "task.env_runner.n_train_vis=0",
    "task.env_runner.n_test=1", "task.env_runner.n_test_vis=1", "task.env_runner.max_steps=16",
    "task.dataset.val_ratio=0.25", "logging.mode=disabled",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif("DIFFUSION_POLICY" not in os.environ, reason="DIFFUSION_POLICY names no checkout")
def test_a_checkout_of_the_original_trains_validates_and_rolls_out(tmp_path):
    """The same first batch has nearer noise and a smaller loss; its checkpoint acts here."""
    store, logs = write_small_store(tmp_path / "pusht.zarr"), {}
    for noise in ("vanilla", "knn"):
        words = [ORIGINAL, "--config-name=train_diffusion_unet_lowdim_workspace", f"+noise={noise}", *SHORT]
        out = [f"task.dataset.zarr_path={store}", f"hydra.run.dir={tmp_path / noise}"]
        peers(*words, *out, venv=".venv-original", cwd=Path(os.environ["DIFFUSION_POLICY"]))
        logs[noise] = [json.loads(line) for line in (tmp_path / noise / "logs.json.txt").read_text().splitlines()]
    assert logs["knn"][0]["train_loss"] < logs["vanilla"][0]["train_loss"]
    assert {"val_loss", "test/mean_score"} <= logs["knn"][-1].keys()
    policy = load_policy(tmp_path / "knn/checkpoints/latest.ckpt", seed=0)
    assert policy.act(np.full(20, 250.0)).shape == (2,)
