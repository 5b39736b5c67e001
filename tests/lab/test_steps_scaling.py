"""The denoising layers measured against analytic denoisers; the small image models; both experiments end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from immiscible_policy.cli import parse
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.image.data import load_cifar10
from immiscible_policy.image.evaluation.frechet import feature_statistics
from immiscible_policy.lab import scaling, steps
from immiscible_policy.lab.image_models import ImageTraining, image_model, require_models
from immiscible_policy.lab.layers import Batch, denoising, measure_layers, relative_error
from immiscible_policy.lab.pixels import distance_to, pixel_features, tiled
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Ddpm
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.recipes.image import ImageRecipe
from immiscible_policy.store.checkpoint import read_checkpoint, save_checkpoint
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task, open_demonstrations, task_windows
from immiscible_policy.training.driver import begin
from tests.image.folders import write_images

STD, DIMS = 0.3, 6
TINY = ImageTraining(steps=6, batch_size=8, channels=(8, 8))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    for split in ("train", "test"):
        write_images(folder, split, 110)
    return folder


def gaussian_layers(mean, std, count=10):
    """The layers of the exact denoiser for N(mean, std^2), on data of this law."""
    way = denoising(Ddpm(1000, betas="linear"), count, limit=1e9)

    def predict(x, t):
        a2 = way.path.alphas_cumprod[t.long()][:, None]
        return (1 - a2).sqrt() * (x - a2.sqrt() * mean) / (a2 * std**2 + 1 - a2)

    generator = torch.Generator().manual_seed(0)
    plain, own, start, z = (torch.randn(4000, DIMS, generator=generator) for _ in range(4))
    x = mean + STD * z
    reference = feature_statistics(mean + STD * torch.randn(20000, DIMS, generator=generator))
    halves = [
        Batch(*(each[rows] for each in (x, own, plain, start)), predict) for rows in (slice(1500), slice(1500, None))
    ]
    return measure_layers(halves, way, lambda samples: samples, reference), way


def test_the_error_of_the_exact_denoiser_is_the_posterior_spread():
    """For N(m, s^2) the best error is sqrt((1 - a) / (a s^2 + 1 - a)) of the spread: 1 in pure noise, 0 at the data."""
    found, way = gaussian_layers(mean=0.7, std=STD)
    a = np.array([step.alpha**2 for step in way.plan])
    expected = np.sqrt((1 - a) / (a * STD**2 + 1 - a))
    assert found.t == [step.t for step in way.plan]
    np.testing.assert_allclose(found.plain, expected, rtol=0.03)
    np.testing.assert_allclose(found.own, expected, rtol=0.03)


def test_the_exact_denoisers_layers_spread_towards_the_data():
    """Predictions of the first layer are nearly the mean, at distance tr(C) = D s^2; the last are nearly the data."""
    found, _ = gaussian_layers(mean=0.7, std=STD, count=50)
    assert found.frechet[0] == pytest.approx(DIMS * STD**2, rel=0.05)
    assert found.frechet[-1] < 0.02 * found.frechet[0]
    assert found.final[-1] == 0
    assert all(later < sooner for sooner, later in zip(found.final, found.final[1:], strict=False))


def test_a_denoiser_of_one_point_predicts_it_at_every_layer():
    found, _ = gaussian_layers(mean=0.7, std=0.0)
    np.testing.assert_allclose(found.plain, 1, rtol=0.02)  # the mean is all that it predicts
    np.testing.assert_allclose(found.frechet, DIMS * STD**2, rtol=0.05)
    np.testing.assert_allclose(found.final, 0, atol=0.03)


def test_relative_error_is_one_for_the_mean_and_zero_for_the_truth():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    predicted = torch.stack([x.mean(dim=0).expand_as(x), x])
    spread = float((x - x.mean(dim=0)).square().mean().sqrt())
    assert relative_error(predicted, x, spread) == [pytest.approx(1), 0]


def test_pixel_features_are_averages_and_tiles_keep_their_places():
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert pixel_features(images).shape == (4, 192)
    torch.testing.assert_close(pixel_features(images)[1, 0], images[1, 0, :2, :2].mean())
    grid = tiled(torch.stack([torch.full((3, 16, 16), value) for value in (-1.0, 1.0, 1.0, -1.0)]), columns=2)
    assert grid.shape == (36, 36, 3)
    assert [int(grid[row, column, 0]) for row in (9, 27) for column in (9, 27)] == [0, 255, 255, 0]


def test_a_trained_model_is_kept_and_another_training_of_its_name_refused(tmp_path, cifar):
    first = image_model(tmp_path, cifar, TINY)
    again = image_model(tmp_path, tmp_path / "not read", TINY)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training
    with pytest.raises(ValueError, match="another steps, lr, warmup_steps, eval_every"):
        image_model(tmp_path, cifar, replace(TINY, steps=8, lr=1e-4))


def test_an_interrupted_training_goes_on(tmp_path, cifar):
    training = replace(TINY, noise="knn", options={"k": 4})
    whole = image_model(tmp_path / "whole", cifar, training)
    config = training.config(tmp_path / "cut", cifar)
    assert (config.noise["k"], config.warmup_steps, config.clip, config.seed) == (4, 3, None, "0")
    begin(ImageRecipe, config)
    resumed = image_model(tmp_path / "cut", cifar, training)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_steps_measures_what_the_models_predict(tmp_path, cifar, monkeypatch):
    monkeypatch.setattr(steps, "LAYERS", 4)
    tiny = replace(TINY, batch_size=100, steps=2)
    monkeypatch.setattr(steps, "TRAININGS", {"vanilla": tiny, "assignment": replace(tiny, noise="linear")})
    options = parse([f"images={cifar}", f"models={tmp_path}", "n=200"], steps.EXPERIMENT.options, "")
    figures, text, picture = steps.EXPERIMENT.measure(options)
    (section,) = (value for value in figures.values() if isinstance(value, dict))
    assert list(section["layers"]) == ["vanilla", "assignment"]
    (layers,) = section["layers"]["vanilla"]
    assert layers["t"] == [999, 749, 499, 249]
    assert 0 < section["frechet_floor"] < layers["frechet"][-1]
    assert f"{layers['frechet'][-1]:.3f}" in text and f"{section['frechet_floor']:.3f}" in text
    assert len(picture.axes) == 5


def test_steps_measures_every_seed_of_policies(tmp_path):
    spec = PolicySpec("state", 5, 2, 16, 2, 8, 1.0, (8, 16), 16, 3, 4)
    task = find_task("pusht")
    windows = task_windows(task, open_demonstrations(task), "state")
    policy = build_policy(spec, Normalizer.fit(windows.obs), Normalizer.fit(windows.action))
    for run, noise in (("plain", {"name": "vanilla"}), ("near", {"name": "knn", "k": 64})):
        for seed in range(2):
            about = spec_metadata(spec) | {"config": {"noise": noise, "batch_size": 100}, "step": 1}
            path = tmp_path / run / f"seed_{seed}" / "checkpoints" / "step_000001"
            save_checkpoint(path, about, {"ema": policy.state_dict()})
    words = [f"runs={tmp_path}/plain,{tmp_path}/near", "n=200"]
    figures, text, _ = steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))
    section = figures["PushT actions"]
    (plain, same), (near, _) = section["layers"]["plain"], section["layers"]["near"]
    assert plain == same and "plain (2 seeds)" in text
    assert near["plain"] == plain["plain"] and near["final"] == plain["final"]  # the same weights, the same noise
    assert near["own"] != plain["own"]
    assert 0 < section["frechet_floor"] < min(plain["frechet"])


def recorded_noise(path, noise):
    save_checkpoint(path, {"step": 700, "config": {"noise": noise}}, {})
    return read_checkpoint(path)


def test_a_policys_own_selector_is_what_its_run_recorded_at_full_strength(tmp_path):
    idp26 = {
        "name": "idp26",
        "pool": 2,
        "cost": "euclidean",
        "potentials": "auto",
        "start": "50ep",
        "stop": None,
        "ramp": 9,
    }
    assert steps.own_selector(recorded_noise(tmp_path / "step_000700", idp26)) == make_selector("idp26", pool=2)
    coupled = recorded_noise(tmp_path / "step_000701", {"name": "picky"})
    with pytest.raises(ValueError, match="noise=picky; steps knows vanilla"):
        steps.own_selector(coupled)


def test_models_that_cannot_be_had_are_refused_before_any_is_trained(tmp_path, cifar):
    image_model(tmp_path, cifar, TINY)
    wanted = [replace(TINY, noise="linear"), TINY]
    require_models(tmp_path, cifar, wanted)
    with pytest.raises(ValueError, match="nowhere is missing"):
        require_models(tmp_path, tmp_path / "nowhere", wanted)
    with pytest.raises(ValueError, match="another lr"):
        require_models(tmp_path, cifar, [wanted[0], replace(TINY, lr=1e-4)])
    newest = RunDirectory(tmp_path / TINY.name).seed(0).newest()
    (newest.path / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="corrupt"):
        require_models(tmp_path, cifar, wanted)
    save_checkpoint(newest.path, {"step": 6}, {})  # of something else
    with pytest.raises(ValueError, match="describes no image model"):
        require_models(tmp_path, cifar, wanted)
    assert sorted(each.name for each in tmp_path.iterdir()) == [TINY.name]


def test_policies_of_other_sizes_or_damaged_are_refused_before_any_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "measure_policy", lambda *_: pytest.fail("a policy was measured"))

    def save(run, horizon, noise="vanilla"):
        spec = PolicySpec("state", 5, 2, horizon, 2, 4, 100, 1.0, (8, 16), 16, 3, 4)
        about = spec_metadata(spec) | {"config": {"noise": {"name": noise}, "batch_size": 9}, "step": 1}
        path = tmp_path / run / "seed_0" / "checkpoints" / "step_000001"
        save_checkpoint(path, about, {"ema": build_policy(spec).state_dict()})
        return path

    def refuse(message, *runs):
        words = ["runs=" + ",".join(str(tmp_path / run) for run in runs)]
        with pytest.raises(ValueError, match=message):
            steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))

    save("whole", 16), save("short", 8), save("coupled", 16, "picky")
    (save("damaged", 16) / "ema.safetensors").write_bytes(b"damaged")
    refuse("policies of horizon 8 and 16; they need the same", "whole", "short")
    refuse("noise=picky", "whole", "coupled")
    refuse("corrupt", "whole", "damaged")


def test_scaling_compares_samples_with_real_images(tmp_path, cifar, monkeypatch):
    monkeypatch.setattr(scaling, "TRAININGS", {"vanilla": TINY})
    words = [f"images={cifar}", f"models={tmp_path}", "stds=2,0.5", "n=200", "sampling_steps=2"]
    figures, text, picture = scaling.EXPERIMENT.measure(parse(words, scaling.EXPERIMENT.options, ""))
    assert [row["data_std"] for row in figures["rows"]] == [0.5, 2.0]
    assert 0 < figures["frechet_floor"] < figures["frechet_plain_noise"]
    model = image_model(tmp_path, cifar, replace(TINY, data_std=2.0))
    start = torch.randn(200, 3, 16, 16, generator=scaling.torch_generator("cpu", "scaling", 0))
    test = pixel_features(load_cifar10(cifar, "test", size=16).float() / 127.5 - 1)
    expected = distance_to(feature_statistics(test), model.sample(start, model.choose(steps=2)).images)
    assert figures["rows"][1]["frechet"] == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.2f}" in text
    assert len(picture.axes) == 4


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        (steps, [], "images=PATH"),
        (steps, ["runs=nowhere"], "runs=nowhere"),
        (steps, ["images=nowhere", "n=10"], "n=10"),
        (scaling, [], "images=PATH"),
        (scaling, ["images=nowhere", "stds=1,1"], "stds=1,1"),
        (scaling, ["images=nowhere", "stds=1,a"], "stds=1,a"),
        (scaling, ["images=nowhere", "noise=linear"], "noise=linear"),
        (scaling, ["images=nowhere", "sampling_steps=0"], "sampling_steps=0"),
        (scaling, ["images=nowhere"], "nowhere is missing"),
    ],
)
def test_bad_options_are_one_line_before_any_work(experiment, words, message):
    with pytest.raises(ValueError, match=message) as refused:
        experiment.EXPERIMENT.measure(parse(words, experiment.EXPERIMENT.options, ""))
    assert "\n" not in str(refused.value)
