"""Every example runs, in at most 60 lines."""

import os
import re
import subprocess
import sys

import pytest

from tests.plugins.peers import ROOT, needs, peers

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


def test_there_are_four_and_each_is_short():
    assert len(EXAMPLES) == 4
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)


def here(*words, cwd=ROOT):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("noise", ["vanilla", "knn"])
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


@pytest.mark.slow
def test_accelerate_pairs_across_two_processes():
    needs("accelerate")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no")
    result = losses(peers(*launch, "examples/diffusers_accelerate.py").stdout)
    assert len(result) == 4 and result[-1] < 0.8 * result[0]


def test_the_original_diffusion_policy_is_trained_by_its_own_workspace(tmp_path):
    """In a checkout whose workspace is the miniature: the example composes its configuration and runs it."""
    checkout = tmp_path / "diffusion_policy"
    (checkout / "config").mkdir(parents=True)
    (checkout / "config" / "train_miniature.yaml").write_text(
        "_target_: diffusion_policy.workspace.Workspace\nhorizon: ${eval:'2 * 4'}\nhydra: {run: {dir: outputs}}\n"
    )
    (checkout / "workspace.py").write_text(WORKSPACE)
    example = str(ROOT / "examples" / "original_diffusion_policy.py")
    done = here(example, "--config-name=train_miniature", "+noise=knn", "+k=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained with ImmiscibleLoss KNN(k=4" in done.stdout and "at step 0" in done.stdout
