"""The parts of a small Stable Diffusion: their losses by hand, and all commands from a data set to CLIPScores."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from immiscible_policy.recipes.small_stable_diffusion import Pictures, matching_loss
from tests.image.folders import write_image
from tests.training.helpers import here, refused

COLOURS = {"dark": 20, "grey": 120, "white": 235}


def batch(prompts):
    return Pictures(torch.zeros(len(prompts), 3, 4, 4), torch.tensor(prompts), torch.zeros(len(prompts), 4, 1, 1))


def answering(logits):
    """A CLIP with these logits (B, N) of images and prompts."""
    return lambda **inputs: SimpleNamespace(logits_per_image=logits)


def test_the_loss_is_clips_where_every_image_has_a_prompt_of_its_own():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    found = matching_loss(answering(logits), {}, batch([2, 0, 3, 1]))
    torch.testing.assert_close(found, image_text_contrastive_loss(logits[:, [2, 0, 3, 1]].T))


def test_images_of_one_prompt_all_match_it():
    """Two images of prompt 0 and one of prompt 1, told apart by a margin m: by hand."""
    margin = 3.0
    logits = torch.tensor([[margin, 0.0], [margin, 0.0], [0.0, margin]])
    two = -np.log(np.exp(margin) / (2 * np.exp(margin) + 1))  # either of the two that match, beside one that does not
    one = -np.log(np.exp(margin) / (np.exp(margin) + 2))
    found = matching_loss(answering(logits), {}, batch([0, 0, 1]))
    assert float(found) == pytest.approx((2 * two + one) / 3, rel=1e-5)


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Images of three shades, with the names of the shades."""
    root, rng = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(120):
            for name, shade in COLOURS.items():
                pixels = np.full((32, 32, 3), shade) + rng.integers(-15, 16, (1, 1, 3))
                write_image(root / split / name / f"{number}.png", pixels.astype(np.uint8))
    return root


@pytest.mark.slow
def test_from_a_data_set_to_clipscores(shades, tmp_path):
    """The CLIP tells shades apart that it was shown, and the Stable Diffusion trains on the parts."""
    data = (f"data={shades}", "dataset=cifar10")
    parts, run = tmp_path / "parts", tmp_path / "run"
    for words in (
        ("-m", "immiscible_policy.commands.train_small_sd", *data, f"out={parts}", "steps=30"),
        ("train_image.py", "model=sd", "scale=cpu", f"pretrained={parts / 'pipeline'}", *data, "noise=knn", "k=4",
         "steps=2", "checkpoint_every=2", "samples=2", "sampling_steps=2", "wandb=disabled", f"out={run}"),
        ("eval_image.py", f"run={run}", "samples=120", "sampling_steps=2", f"clip={parts / 'clip'}"),
    ):  # fmt: skip
        done = here(*words)
        assert done.returncode == 0, done.stderr
    measured = json.loads((run / "frechet.json").read_text())
    real = measured["reference"]["clip_score"]
    assert real["own"] > real["others"] + 20
    assert 0 <= measured["runs"]["run"]["rows"][0]["clip_score"] <= 100
    assert f"Real images have {real['own']:.2f} with their own prompts" in (run / "frechet.md").read_text()


def test_images_without_prompts_are_refused_before_any_work(tmp_path):
    for number in range(3):
        write_image(tmp_path / "set" / f"{number}.png", np.zeros((32, 32, 3), np.uint8))
    words = ("-m", "immiscible_policy.commands.train_small_sd", f"data={tmp_path / 'set'}", "dataset=folder")
    assert "have no class names" in refused(here(*words, f"out={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()
