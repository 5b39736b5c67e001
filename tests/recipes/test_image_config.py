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
