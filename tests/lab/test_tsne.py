"""Maps: clusters of noise, predictions along denoising, and the same map for the same seed."""

import sys

import numpy as np
import pytest
import torch

from immiscible_policy.lab import tsne
from immiscible_policy.lab.clusters import assigned_noise
from immiscible_policy.lab.mixture import mixing
from immiscible_policy.noise import make_selector
from immiscible_policy.store.checkpoint import Checkpoint
from tests.random_numbers import generator

pytest.importorskip("sklearn")
OPTIONS = {key: option.default for key, option in tsne.OPTIONS.items()}


def test_a_map_is_a_function_of_the_seed():
    points = torch.randn(40, 8, generator=generator())
    first, again, other = tsne.embed(points, 0), tsne.embed(points, 0), tsne.embed(points.flip(0), 1)
    assert first.shape == (40, 2) and np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_map_keeps_well_separated_clusters_apart():
    groups = torch.arange(3).repeat_interleave(20)
    points = 20 * torch.eye(3)[groups] + 0.1 * torch.randn(60, 3, generator=generator())
    assert mixing(torch.from_numpy(tsne.embed(points, 0)), groups) == 0


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        tsne.measure(OPTIONS)


def test_noise_clusters_belong_to_their_samples():
    far = 30 * torch.eye(32)[: 2 * tsne.CLUSTERS]  # samples far apart, each with directions of its own
    groups = torch.arange(tsne.CLUSTERS).repeat_interleave(40)
    agreement = {}
    for name, options in {"vanilla": {}, "knn": {"k": 64}, "linear": {}}.items():
        select = make_selector(name, **options)
        noise = assigned_noise(select, far, tsne.CLUSTERS, 2 * tsne.CLUSTERS, 40, generator())
        assert noise.shape == (tsne.CLUSTERS, 40, 32)
        agreement[name] = 1 - mixing(noise.flatten(0, 1), groups)
        along = (noise.mean(dim=1) * far[: tsne.CLUSTERS] / 30).sum(dim=1)  # each cluster's mean along its sample
        assert (along > 0.8).all() if name != "vanilla" else (along.abs() < 0.6).all()
    assert agreement["vanilla"] == pytest.approx(39 / (40 * tsne.CLUSTERS - 1), abs=0.08)
    assert min(agreement["knn"], agreement["linear"]) > agreement["vanilla"] + 0.1


def test_spread_is_relative_to_the_final_samples():
    final = torch.randn(30, 4, generator=generator())
    predicted = torch.stack([torch.ones(30, 4), 0.5 * final + 3, final])
    assert tsne.spreads(predicted) == pytest.approx([0, 0.5, 1])


def test_what_a_layer_knows_of_the_final_samples_by_hand():
    final = torch.randn(2000, 4, generator=generator())
    other = torch.randn(2000, 4, generator=generator(1))
    predicted = torch.stack([other, 0.5 * final + 3, -final, final])
    assert tsne.decided(predicted) == pytest.approx([0, 1, -1, 1], abs=0.05)


def test_the_experiment_without_models_maps_the_actions_and_reproduces():
    options = OPTIONS | {"noises": 6, "batch_size": 16}
    first, again = tsne.measure(options), tsne.measure(options)
    assert first.figures == again.figures
    (panels,) = first.figures.values()
    assert list(panels) == ["vanilla", "KNN k=2", "assignment, batch 16"]
    assert len(first.picture.axes) == 3
    assert panels["vanilla"]["chance"] == pytest.approx(5 / (6 * tsne.CLUSTERS - 1))


@pytest.mark.parametrize(("key", "value"), [("noises", 1), ("starts", 1), ("batch_size", tsne.CLUSTERS)])
def test_bad_options_are_refused_in_one_line(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        tsne.measure(OPTIONS | {key: value})


def test_without_candidates_asked_for_noise_is_mapped_with_those_of_the_first_knn_run(tmp_path):
    noises = [{"name": "vanilla"}, {"name": "knn", "k": 4}, {"name": "knn", "k": 64}]
    checkpoints = [Checkpoint(tmp_path, {"config": {"noise": noise}}) for noise in noises]
    assert tsne.trained_k(checkpoints) == 4 and tsne.trained_k(checkpoints[:1]) is None


def test_noise_is_mapped_with_the_candidates_that_are_asked_for():
    data, few = torch.randn(12, 8, generator=generator()), {"noises": 6, "batch_size": 6}
    maps = tsne.noise_maps(data, 5, OPTIONS | few)
    assert list(maps) == ["vanilla", "KNN k=5", "assignment, batch 6"]
