"""The sampling benchmark as a dry run through the real command line: structure and agreement, never speed."""

import json
from pathlib import Path

import pytest

from benchmarks.sampling import EXPERIMENT, SCHEDULERS, forward, scored
from immiscible_policy.evaluation.agent import Agent, spec_metadata
from immiscible_policy.path import Ddpm
from immiscible_policy.policy.build import build_policy
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.small_policy import SPEC
from tests.training.helpers import here


@pytest.fixture
def checkpoint(tmp_path):
    weights = build_policy(SPEC).state_dict()
    path = tmp_path / "step_000001"
    save_checkpoint(path, spec_metadata(SPEC) | {"step": 1, "seed": 0}, {"model": weights, "ema": weights})
    return path


def test_a_dry_run_measures_latency_and_reward(tmp_path, checkpoint):
    words = ["quick=true", "peers=none", f"checkpoint={checkpoint}", f"out={tmp_path}"]
    result = here("-m", "benchmarks", "sampling", *words)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "sampling.json").read_text())["figures"]
    cells = figures["cells"]
    assert [(c["envs"], c["solver"], c["steps"]) for c in cells] == [
        (envs, name, steps) for envs in (1, 2) for name in Ddpm.solvers for steps in (1, 5)
    ]
    for cell in cells:
        theirs = {"diffusers"} if cell["solver"] in SCHEDULERS else set()
        assert set(cell["ms"]) == {"ours", "network"} | theirs and min(cell["ms"].values()) > 0
        assert cell["largest_difference"] < 1e-2  # of the chunks, in px
        assert 0 <= cell["reward"]["low"] <= cell["reward"]["mean"] <= cell["reward"]["high"] <= 1
    assert (tmp_path / "sampling.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sampling.md").read_text()
    assert "Reward against latency, 2 legacy starts" in text and "| ddpm, 5 |" in text


def test_without_a_checkpoint_latency_alone(tmp_path):
    options = {key: option.default for key, option in EXPERIMENT.options.items()}
    findings = EXPERIMENT.measure(options | {"quick": True, "peers": (), "solvers": "ddim"})
    assert findings.figures["starts"] == 0 and "reward" not in findings.figures["cells"][0]
    assert "Reward" not in findings.text and len(findings.picture.axes) == 1


def test_another_method_has_its_own_solvers_and_no_diffusers():
    options = {key: option.default for key, option in EXPERIMENT.options.items()}
    words = {"quick": True, "peers": (), "method": "flow", "solvers": "euler,heun"}
    cells = EXPERIMENT.measure(options | words).figures["cells"]
    assert {(cell["solver"], cell["steps"]) for cell in cells} == {
        (name, n) for name in ("euler", "heun") for n in (1, 5)
    }
    assert all(set(cell["ms"]) == {"ours", "network"} for cell in cells)


def test_the_score_is_that_of_an_evaluation():
    """A mean over the starts within its interval; the network's floor predicts a chunk's noise."""
    policy = build_policy(SPEC).eval()
    actual = scored(Agent(policy, SPEC, Solver("ddim", 1)), [100000, 100001, 100002], 8)
    assert actual["reward"]["low"] <= actual["reward"]["mean"] <= actual["reward"]["high"]
    assert actual["coverage"] == pytest.approx(0.95 * actual["reward"]["mean"], abs=1e-3)  # no start passes 0.95
    assert forward(policy, policy.action.scale.new_zeros(3, 2, 20))().shape == (3, 16, 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("solvers", "direct", "solver=direct"),
        ("steps", "0", "steps=0"),
        ("steps", "5,101", "sampling_steps=101"),
        ("device", "tpu", "device=tpu"),
        ("checkpoint", Path("nowhere"), "nowhere"),
    ],
)
def test_unusable_values_are_refused(key, value, message):
    options = {key: option.default for key, option in EXPERIMENT.options.items()} | {"peers": (), "scale": "cpu"}
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.measure(options | {key: value})
