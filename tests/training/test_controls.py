"""Controls without diffusion through the real command line: trained, evaluated and refused like any other policy."""

import json

import pytest

from immiscible_policy.store.rows import read_rows
from immiscible_policy.tasks.pusht import PushT
from tests.training.helpers import here, refused, tree

WORDS = ("down_dims=[16,32]", "step_embed_dim=16", "groups=4", "steps=6", "batch_size=16", "checkpoint_every=3",
         "episodes=2", "warmup_steps=1", "wandb=disabled", "log_every=3", "threads=1", "precision=fp32")  # fmt: skip


@pytest.fixture(scope="module", params=["mip"])
def finished(request, store, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    result = here("train_policy.py", f"method={request.param}", f"data={store}", f"out={out}", *WORDS)
    assert result.returncode == 0, result.stderr
    return out, request.param


def test_a_control_is_recorded_as_one_and_has_no_noise_to_audit(finished):
    out, method = finished
    metadata = json.loads((out / "seed_0/checkpoints/step_000006/metadata.json").read_text())
    assert metadata["policy"]["method"] == method
    rows = [json.loads(line) for line in (out / "seed_0/metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "coverage" in row]
    assert len(evaluated) == 2 and not any(key.startswith("noise/") for row in evaluated for key in row)


def test_a_control_starts_from_the_weights_of_diffusion_and_learns_something_else(finished, store, tmp_path):
    out, _ = finished
    diffusion = tmp_path / "diffusion"
    assert here("train_policy.py", f"data={store}", f"out={diffusion}", *WORDS).returncode == 0
    of_control, of_diffusion = (tree(run / "seed_0/checkpoints/step_000006") for run in (out, diffusion))
    assert of_control["model.safetensors"] != of_diffusion["model.safetensors"]
    assert len(of_control["model.safetensors"]) == len(of_diffusion["model.safetensors"])  # the same network


def test_evaluation_repeats_what_training_recorded_and_takes_no_other_solver(finished, tmp_path):
    """A control draws nothing when it acts, so the number of network calls changes nothing."""
    out, _ = finished
    recorded = [row for row in read_rows(out / "seed_0/episodes.csv", PushT.metrics) if row.checkpoint == 6]
    for i, words in enumerate(([], ["sampling_steps=10"])):
        target = tmp_path / f"{i}.csv"
        checkpoint = out / "seed_0/checkpoints/step_000006"
        result = here("eval_policy.py", f"checkpoint={checkpoint}", f"out={target}", "episodes=2", *words)
        assert result.returncode == 0, result.stderr
        assert read_rows(target, PushT.metrics) == recorded and len(recorded) == 2
    words = (f"checkpoint={checkpoint}", f"out={tmp_path / 'other.csv'}", "sampler=ddpm")
    assert "solver=ddpm: what this model learned is solved with direct" in refused(here("eval_policy.py", *words))


@pytest.mark.parametrize(
    "words, message",
    [
        (["method=mip", "noise=knn"], "noise=knn: method=mip does not diffuse"),
        (["method=regression", "noise=linear"], "use noise=vanilla"),
        (["method=mip", "prediction=velocity"], "prediction=velocity: method=mip predicts sample"),
    ],
)
def test_what_a_control_cannot_do_is_one_line_and_creates_nothing(words, message, store, tmp_path):
    out = tmp_path / "run"
    assert message in refused(here("train_policy.py", f"data={store}", f"out={out}", *words))
    assert not out.exists()


def test_the_laboratory_refuses_a_control_in_one_line(finished, tmp_path):
    out, _ = finished
    words = ("immiscible_policy.lab", "steps", f"runs={out}", f"data={PushT().demonstrations()}", f"out={tmp_path}")
    assert "solver=ddim: what this model learned is solved with direct" in refused(here("-m", *words))
