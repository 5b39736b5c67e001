"""Every image model learns from real pixels, with every kind of noise that fits it."""

import json

import pytest

from tests.image.tiny import tiny_stable_diffusion
from tests.training.helpers import command

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
STEPS, EVALUATIONS = 300, 20
NETWORK = ("size=16", "channels=[16,32,64]", "layers=1", "attention=[false,false,true]")


@pytest.mark.slow
@pytest.mark.parametrize("noise", [("noise=vanilla",), ("noise=knn", "k=8"), ("noise=linear",)])
@pytest.mark.parametrize("model", ["ddim", "flow", "consistency", "sd"])
def test_the_loss_on_fixed_noise_and_times_falls(model, noise, real_cifar10, tmp_path):
    """Mean over the last tenth of 300 steps below that over the first, and samples drawn all along."""
    words = [*noise, f"model={model}", f"data={real_cifar10}", "limit=5000", f"steps={STEPS}", "batch_size=32"]
    words += [f"eval_every={STEPS // EVALUATIONS}", f"checkpoint_every={STEPS}", "warmup_steps=20", "lr=1e-3"]
    words += ["samples=4", "sampling_steps=2", "wandb=disabled", "threads=1", f"out={tmp_path / 'run'}"]
    if model == "sd":
        words += [f"pretrained={tiny_stable_diffusion(tmp_path / 'parts', CLASSES)}", "size=64"]
    else:
        words += NETWORK
    result = command("train_image.py", *words, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/seed_0/metrics.jsonl").read_text().splitlines()]
    losses = [row["fixed_loss"] for row in rows if "fixed_loss" in row]
    tenth = EVALUATIONS // 10
    first, last = losses[:tenth], losses[-tenth:]
    print(f"{model} {noise}: {sum(first) / tenth:.4f} -> {sum(last) / tenth:.4f}")
    assert len(losses) == EVALUATIONS and sum(last) < sum(first)
    assert len(list((tmp_path / "run/seed_0/samples").glob("*.png"))) == EVALUATIONS
