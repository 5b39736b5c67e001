"""Image scaling and clusters of noise, measured on small image models by what their runs record."""

import pytest
import torch
import yaml

from immiscible_policy.cli import parse
from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.spec import spec_metadata
from immiscible_policy.lab import clusters, scaling
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.image.folders import write_images
from tests.image.specs import tiny_spec


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each data scale a run with the same weights; the larger one's noise was chosen from 64."""
    place = tmp_path_factory.mktemp("runs")
    for split in ("train", "test"):
        write_images(place / "cifar", split, 50)
    for scale, noise in ((1.0, {"name": "vanilla"}), (2.0, {"name": "knn", "k": 64})):
        spec, run = tiny_spec(data_scale=scale), place / f"scale_{scale:g}"
        run.mkdir()
        config = {"noise": noise, "batch_size": 12, "data": str(place / "cifar"), "dataset": "cifar10"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        torch.manual_seed(0)
        weights = {"ema": build_image_model(spec).state_dict()}
        about = spec_metadata(spec) | {"config": config, "step": 1, "seed": 0}
        save_checkpoint(run / "seed_0" / "checkpoints" / "step_000001", about, weights)
    return place


def measured(experiment, runs, *words):
    options = parse([f"runs={runs}/scale_1,{runs}/scale_2", *words], experiment.options, "")
    return experiment.measure(options)


def test_scaling_measures_runs_at_the_scale_that_they_were_trained_at(runs):
    figures, text, picture = measured(scaling.EXPERIMENT, runs, "samples=100", "sampling_steps=1")
    one, two = figures["runs"].values()
    assert two["data_std"] == pytest.approx(2 * one["data_std"])
    assert one["steps"] == two["steps"] == [1] and one["distance"][0]["mean"] > 0
    assert f"{two['distance'][0]['mean']:.3f}" in text and picture is not None


def test_clusters_of_runs_are_of_their_own_noise(runs):
    """Vanilla noise of any image averages to nothing; of 64 candidates the nearest lies towards its image."""
    figures, text, _ = measured(clusters.EXPERIMENT, runs, "n=400", "pictures=4")
    vanilla, knn = figures["rows"]
    assert knn["rms"] == pytest.approx(2 * vanilla["rms"], rel=1e-4)
    assert knn["distances"]["corrected"] > vanilla["distances"]["corrected"] + 0.5
    assert "scale_2" in text and "| published |" not in text
