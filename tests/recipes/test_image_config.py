"""The options of image trainings: presets that two of them pick together."""

import pytest

from immiscible_policy.recipes.image_config import SCHEMA


@pytest.mark.parametrize(("model", "k"), [("ddim", 8), ("flow", 4), ("consistency", 4), ("sd", 64)])
def test_knn_takes_the_published_candidates_of_its_model(model, k):
    """The best k of arXiv 2505.18521, unless another is given; other selectors know nothing of it."""
    words = [f"model={model}", "data=somewhere"]
    assert SCHEMA.compose([*words, "noise=knn"]).noise["k"] == k
    assert SCHEMA.compose([*words, "noise=knn", "k=3"]).noise["k"] == 3
    assert "k" not in SCHEMA.compose([*words, "noise=linear"]).noise
    assert SCHEMA.compose(words).noise == {"name": "vanilla"}


def test_stable_diffusion_trains_as_published_from_scratch_and_from_published_weights():
    """As in arXiv 2505.18521: 20,000 steps of 2,048 at 1e-4, and 5,000 of 512 at 1e-5, both with weight decay 1e-2."""
    words = ["model=sd", "scale=paper", "pretrained=tiny", "data=somewhere"]
    scratch, tuned = (SCHEMA.compose([*words, f"init={init}"]) for init in ("scratch", "pretrained"))
    assert (scratch.steps, scratch.batch_size, scratch.lr) == (20_000, 2048, 1e-4)
    assert (tuned.steps, tuned.batch_size, tuned.lr) == (5_000, 512, 1e-5)
    assert scratch.weight_decay == tuned.weight_decay == 1e-2 and scratch.warmup_steps == tuned.warmup_steps == 0
    small = SCHEMA.compose(["model=sd", "scale=cpu", "init=pretrained", "pretrained=tiny", "data=somewhere"])
    assert small.batch_size == 16 and SCHEMA.compose([*words, "init=pretrained", "lr=1e-4"]).lr == 1e-4
