"""The denoising layers measured against analytic denoisers, and the program end to end on small models."""

import numpy as np
import pytest
import torch
import yaml

from immiscible_policy.cli import parse
from immiscible_policy.demos.windows import Layout
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.evaluation.frechet import feature_statistics
from immiscible_policy.image.spec import spec_metadata as image_metadata
from immiscible_policy.lab import runs, steps
from immiscible_policy.lab.steps import LayerBatch, measure_layers, predicted_along_sampling, squared_errors
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Ddpm, Flow
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import read_checkpoint, save_checkpoint
from immiscible_policy.store.run import named_runs
from immiscible_policy.tasks import find_task, open_demonstrations, task_windows
from tests.image.folders import write_images
from tests.image.specs import tiny_spec

STD, DIMS = 0.3, 6
SPEC = ("state", 5, 2, 16, 2, 8, 1.0, (8, 16), 16, 3, 4, "diffusion", "epsilon", 100)


def gaussian_layers(mean, std, count=10, cuts=(1500,)):
    """The layers of the exact denoiser for N(mean, std^2), on data of this law."""
    path = Ddpm(1000, betas="linear")
    plan = Solver("ddim", count).plan(path)

    def network(x, t):
        alpha, sigma = (value[:, None] for value in path.coefficients(t.long()))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    generator = torch.Generator().manual_seed(0)
    plain, own, start, z = (torch.randn(4000, DIMS, generator=generator) for _ in range(4))
    x = mean + STD * z
    reference = feature_statistics(mean + STD * torch.randn(20000, DIMS, generator=generator))
    batches = [
        LayerBatch(*(values[rows] for values in (x, own, plain)), start[None, rows], network)
        for rows in map(slice, (0, *cuts), (*cuts, None))
    ]
    return measure_layers(batches, path, plan, 1e9, lambda samples: samples, reference), plan


def test_the_error_of_the_exact_denoiser_is_the_posterior_spread():
    """For N(m, s^2) the best error is sqrt((1 - a) / (a s^2 + 1 - a)) of the spread: 1 in pure noise, 0 at the data."""
    layers, plan = gaussian_layers(mean=0.7, std=STD)
    a = np.array([step.alpha**2 for step in plan])
    expected = np.sqrt((1 - a) / (a * STD**2 + 1 - a))
    assert layers["t"] == [step.t for step in plan]
    np.testing.assert_allclose(layers["plain"], expected, rtol=0.03)
    np.testing.assert_allclose(layers["own"], expected, rtol=0.03)


def test_the_exact_denoisers_layers_spread_towards_the_data():
    """Predictions of the first layer are nearly the mean, at distance tr(C) = D s^2; the last are nearly the data."""
    layers, _ = gaussian_layers(mean=0.7, std=STD, count=50)
    assert layers["frechet"][0] == pytest.approx(DIMS * STD**2, rel=0.05)
    assert layers["frechet"][-1] < 0.02 * layers["frechet"][0]
    assert layers["final"][-1] == 0
    assert all(later < sooner for sooner, later in zip(layers["final"], layers["final"][1:], strict=False))


def test_a_denoiser_of_one_point_predicts_it_at_every_layer():
    layers, _ = gaussian_layers(mean=0.7, std=0.0)
    np.testing.assert_allclose(layers["plain"], 1, rtol=0.02)  # the mean is all that it predicts
    np.testing.assert_allclose(layers["frechet"], DIMS * STD**2, rtol=0.05)
    np.testing.assert_allclose(layers["final"], 0, atol=0.03)


def test_flow_matching_has_layers_too():
    """The exact velocity of data at one point, (m - x) / (1 - t), predicts it at every layer."""
    plan, place = Solver("ddim", 5).plan(Flow()), torch.tensor([0.4, -0.2])

    def network(x, t):
        return (place - x) / (1 - t / 1000)[:, None]

    predicted = predicted_along_sampling(network, Flow(), plan, torch.randn(1, 7, 2), limit=1.0)
    torch.testing.assert_close(predicted, place.expand(5, 7, 2), rtol=1e-4, atol=1e-4)


def test_layers_do_not_depend_on_how_the_samples_are_cut_into_batches():
    whole, _ = gaussian_layers(mean=0.7, std=STD, cuts=())
    parts, _ = gaussian_layers(mean=0.7, std=STD, cuts=(1, 1000, 3999))
    for key, values in whole.items():
        assert parts[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key


def test_errors_are_summed_over_the_samples_of_each_layer():
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert squared_errors(torch.stack([target, target + 2]), target).tolist() == [0, 16]


def write(run, seed, about, policy):
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(about["config"]))
    path = run / f"seed_{seed}" / "checkpoints" / "step_000001"
    save_checkpoint(path, about | {"seed": seed}, {"ema": policy.state_dict()})
    return path


def test_steps_measures_every_seed_of_policies(tmp_path, capsys):
    spec = PolicySpec(*SPEC)
    task = find_task("pusht")
    windows = task_windows(task, open_demonstrations(task), spec.obs, Layout.of(spec))
    policy = build_policy(spec, Normalizer.fit(windows.obs), Normalizer.fit(windows.action))
    for run, noise in (("plain", {"name": "vanilla"}), ("near", {"name": "knn", "k": 64})):
        for seed in range(2):
            about = spec_metadata(spec) | {"config": {"noise": noise, "batch_size": 100}, "step": 1}
            write(tmp_path / run, seed, about, policy)
    words = [f"runs={tmp_path}/plain,{tmp_path}/near", "n=200"]
    figures, text, _ = steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))
    section = figures["actions"]
    (plain, same), (near, _) = section["layers"]["plain"], section["layers"]["near"]
    assert plain == same and "| plain | 2 |" in text
    assert near["plain"] == plain["plain"] and near["final"] == plain["final"]  # the same weights, the same noise
    assert near["own"] != plain["own"]
    assert 0 < section["frechet_floor"] < min(plain["frechet"])
    shown = [f"measuring {run}, seed {seed}" for run in ("plain", "near") for seed in range(2)]
    assert capsys.readouterr().out.splitlines() == shown


@pytest.fixture
def cifar(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "cifar", split, 110)
    return tmp_path / "cifar"


def test_steps_measures_what_image_models_predict(tmp_path, cifar, monkeypatch, capsys):
    for name, value in (("LAYERS", 4), ("SHOWN", (0, 2))):
        monkeypatch.setattr(steps, name, value)
    for run in ("vanilla", "linear"):
        spec = tiny_spec()
        about = image_metadata(spec) | {"config": {"noise": {"name": run}, "batch_size": 100}, "step": 1}
        torch.manual_seed(0)
        write(tmp_path / run, 0, about, build_image_model(spec))
    words = [f"runs={tmp_path}/vanilla,{tmp_path}/linear", f"data={cifar}", "n=200"]
    figures, text, picture = steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))
    section = figures["images"]
    (plain,), (assigned,) = section["layers"]["vanilla"], section["layers"]["linear"]
    assert plain["t"] == [999, 749, 499, 249]
    assert plain["plain"] == assigned["plain"] and plain["own"] != assigned["own"]  # the same weights
    assert 0 < section["frechet_floor"] < plain["frechet"][-1]
    assert f"{plain['frechet'][-1]:.3f}" in text and f"{section['frechet_floor']:.3f}" in text
    assert len(picture.axes) == 5
    assert capsys.readouterr().out.splitlines() == ["measuring vanilla", "measuring linear"]


def test_runs_say_themselves_what_they_are(tmp_path, cifar):
    """One kind at a time; images are read from where a run's training found them, unless data= names another place."""

    def save(run, about, model):
        write(tmp_path / run, 0, about | {"config": {"noise": {"name": "vanilla"}} | about["config"], "step": 1}, model)

    image, policy = tiny_spec(), PolicySpec(*SPEC)
    save("images", image_metadata(image) | {"config": {"data": str(tmp_path / "gone")}}, build_image_model(image))
    save("policy", spec_metadata(policy) | {"config": {}}, build_policy(policy))
    with pytest.raises(ValueError, match="runs= names images, an image model, and policy, a policy"):
        runs.newest_runs(named_runs(f"{tmp_path}/policy,{tmp_path}/images"))
    with pytest.raises(ValueError, match="an image model; this program takes policies"):
        runs.newest_policies(named_runs(f"{tmp_path}/images"))
    policies, models = runs.newest_runs(named_runs(f"{tmp_path}/images"))
    assert not policies and list(models) == ["images"]
    with pytest.raises(ValueError, match="gone: the images of .* are not there; give data=PATH"):
        runs.images_of(models["images"], None)
    images = runs.images_of(models["images"], cifar)
    pixels = images.pixels(torch.arange(len(images)))
    x = runs.clean_samples(models["images"], cifar, 5, seed=0)
    assert pixels.shape == (220, 3, image.size, image.size)
    torch.testing.assert_close(x, image.data_scale * to_pixels(pixels[:5]))


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
    assert runs.own_selector(recorded_noise(tmp_path / "step_000700", idp26)) == make_selector("idp26", pool=2)
    coupled = recorded_noise(tmp_path / "step_000701", {"name": "picky"})
    with pytest.raises(ValueError, match="picky"):
        runs.own_selector(coupled)


@pytest.mark.parametrize("option", ["select_for=residual", "exclude=padding", "select_at=above"])
def test_noise_that_was_chosen_for_less_than_the_whole_is_nobodys_own(tmp_path, option):
    key, value = option.split("=")
    config = {"noise": {"name": "knn", "k": 2}, key: value}
    save_checkpoint(tmp_path / "step_000700", {"step": 700, "config": config}, {})
    with pytest.raises(ValueError, match=f"step_000700: {option}; train with {key}="):
        runs.own_selector(read_checkpoint(tmp_path / "step_000700"))


def test_policies_of_other_sizes_or_damaged_are_refused_before_any_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "measure_policy", lambda *_: pytest.fail("a policy was measured"))

    def save(run, horizon, noise="vanilla"):
        spec = PolicySpec("state", 5, 2, horizon, 2, 4, 1.0, (8, 16), 16, 3, 4, "diffusion", "epsilon", 100)
        about = spec_metadata(spec) | {"config": {"noise": {"name": noise}, "batch_size": 9}, "step": 1}
        return write(tmp_path / run, 0, about, build_policy(spec))

    def refuse(message, *runs):
        words = ["runs=" + ",".join(str(tmp_path / run) for run in runs)]
        with pytest.raises(ValueError, match=message):
            steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))

    save("whole", 16), save("short", 8), save("coupled", 16, "picky")
    (save("damaged", 16) / "ema.safetensors").write_bytes(b"damaged")
    refuse("policies of horizon 8 and 16; they need the same", "whole", "short")
    refuse("picky", "whole", "coupled")
    refuse("corrupt", "whole", "damaged")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "runs= is missing"),
        (["runs=nowhere"], "runs=nowhere: nowhere has no config.yaml, so it is not a run"),
        (["runs=RUN", "n=10"], "n=10: use 200 or more"),
        (["runs=RUN"], "runs=.*: no checkpoint there"),
    ],
)
def test_bad_options_are_one_line_before_any_work(words, message, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    words = [word.replace("RUN", str(tmp_path)) for word in words]
    with pytest.raises(ValueError, match=message) as refused:
        steps.EXPERIMENT.measure(parse(words, steps.EXPERIMENT.options, ""))
    assert "\n" not in str(refused.value)
