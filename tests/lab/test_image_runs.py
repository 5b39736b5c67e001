"""The laboratory on runs that `train_image.py` made, through the real command line."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from immiscible_policy.image.evaluation.features import make_extractor
from immiscible_policy.image.evaluation.measure import reference_features
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab import steps, tsne
from immiscible_policy.randomness import torch_generator
from immiscible_policy.store.checkpoint import read_checkpoint, save_checkpoint
from immiscible_policy.store.run import RunDirectory
from tests.image.evaluation.distances import feature_distance
from tests.image.folders import write_image
from tests.training.helpers import here, refused

TINY = ("model=ddim", "size=8", "channels=[8,16]", "attention=[false,true]", "groups=4", "head_channels=4",
        "layout=diffusers", "dropout=0", "steps=2", "checkpoint_every=2", "batch_size=20", "warmup_steps=1",
        "log_every=2", "samples=2", "sampling_steps=2", "threads=1", "precision=fp32", "wandb=disabled")  # fmt: skip
D = 3 * 8 * 8


def write_colours(root, split, count):
    """Write images of one random colour each, root/split/CLASS/NNNN.png."""
    colours = np.random.default_rng(len(split)).integers(0, 256, (count, 3), np.uint8)
    for number, colour in enumerate(colours):
        write_image(root / split / ("bird", "cat")[number % 2] / f"{number:04d}.png", np.full((32, 32, 3), colour))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        write_colours(root, split, 200)
    return root


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Runs of two steps: plain noise, and noise assigned within two batches of 20, or within one."""
    place = tmp_path_factory.mktemp("runs")
    arms = {"vanilla": ("noise=vanilla",), "linear": ("noise=linear",), "over_2": ("noise=linear", "select_over=2")}
    for name, words in arms.items():
        done = here("train_image.py", f"data={images}", f"out={place / name}", *TINY, *words)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def lab(runs, tmp_path, monkeypatch):
    """Runs an experiment on the command line, with few layers, and returns its figures."""
    for module in (steps, tsne):
        monkeypatch.setattr(module, "LAYERS", 5)
        monkeypatch.setattr(module, "SHOWN", (0, 2, 4))

    def measure(name, *words, arms=("vanilla", "over_2")):
        listed = ",".join(str(runs / arm) for arm in arms)
        done = here("-m", "immiscible_policy.lab", name, f"runs={listed}", f"out={tmp_path / name}", *words)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / f"{name}.md").is_file()
        return json.loads((tmp_path / name / f"{name}.json").read_text())["figures"]

    return measure


def checkpoint(runs, arm):
    return RunDirectory(runs / arm).seed(0).newest()


def test_steps_errs_less_at_every_layer_on_the_way_to_the_image(lab):
    """A network that learned nothing errs by more than the data's spread in noise, and by little near the data."""
    first = lab("steps", "n=200", "device=cpu")["images"]
    assert lab("steps", "n=200", arms=["vanilla"])["images"]["layers"]["vanilla"] == first["layers"]["vanilla"]
    for (layers,) in first["layers"].values():
        assert layers["t"] == [999, 799, 599, 399, 199]
        for kind in ("own", "plain"):
            assert all(later < sooner for sooner, later in zip(layers[kind], layers[kind][1:], strict=False))
            assert layers[kind][0] > 1.2 > 1 > layers[kind][-1] > 0.1
        assert all(later < sooner for sooner, later in zip(layers["final"], layers["final"][1:], strict=False))
        assert 0 < first["frechet_floor"] < 0.1 * layers["frechet"][-1]
    (vanilla,) = first["layers"]["vanilla"]
    assert vanilla["own"] == pytest.approx(vanilla["plain"], rel=0.1)  # two draws of the same law


def test_the_layers_of_runs_meet_the_same_plain_noise_whatever_was_chosen_together(runs, lab):
    """Own noise is nearer to its image where it was chosen within more batches; the rest is the same."""

    def batches(arm):
        def samples(rows):
            return torch.randn(200, 4, generator=torch.Generator().manual_seed(0))[rows], None

        found = checkpoint(runs, arm)
        return list(steps.layer_batches(found, samples, lambda rows: rows, 100, 0, plan=()))

    one, two, plain = (batches(arm) for arm in ("linear", "over_2", "vanilla"))
    assert [len(batch.x) for batch in two] == [len(batch.x) for batch in one] == [20] * 5
    for kind in ("x", "plain", "start", "network"):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(getattr(a, kind), getattr(b, kind)), kind
    near = [float(torch.cat([(b.x - b.own).square().sum(dim=1) for b in arm]).mean()) for arm in (two, one, plain)]
    assert near[0] < 0.95 * near[1] < 0.8 * near[2]


def test_tsne_maps_the_noise_of_images_and_what_layers_predict(lab):
    pytest.importorskip("sklearn")
    words = ("noises=20", "starts=12", "batch_size=16")
    first, again = (lab("tsne", *words) for _ in range(2))
    assert first == again
    noise, predicted = first["noise of images"], first["predicted images"]
    assert noise["vanilla"]["agreement"] == pytest.approx(noise["vanilla"]["chance"], abs=0.1)
    assert noise["vanilla"]["centroid_floor"] == pytest.approx(math.sqrt(2 * D / 20))
    assert noise["KNN k=8"]["centroid_corrected"] > noise["vanilla"]["centroid_corrected"]
    assert list(predicted) == ["vanilla", "over_2"]
    for layers in predicted.values():
        assert len(layers["decided"]) == 5 and layers["decided"][-2] > layers["decided"][0]


def test_bijection_moves_images_the_more_the_more_their_noise_is_perturbed(lab):
    words = ("observations=3", "perturbations=2", "sampling_steps=3", "device=cpu")
    first, again = (lab("bijection", *words) for _ in range(2))
    assert first == again
    for outcome in first["images"].values():
        moved = outcome["displacement"]
        assert all(sooner < later for sooner, later in zip(moved, moved[1:], strict=False))


def test_clusters_of_vanilla_lie_at_their_floor_and_assigned_ones_beyond(lab):
    """The second run's noise was assigned within 40 images, as often as `assigned=6` asks for."""
    figures = lab("clusters", "n=400", "assigned=6", "pictures=4")
    assert figures == lab("clusters", "n=400", "assigned=6", "pictures=4")
    vanilla, assigned = figures["rows"]
    assert (vanilla["n"], assigned["n"]) == (400, 6 * 1024 // 40)
    assert vanilla["distances"]["floor"] == pytest.approx(math.sqrt(2 * D / 400))
    assert vanilla["distances"]["mean"] == pytest.approx(vanilla["distances"]["floor"], rel=0.1)
    assert assigned["distances"]["corrected"] > vanilla["distances"]["corrected"] + 0.5


def test_clusters_take_as_many_images_as_noise_was_chosen_for(runs, lab, tmp_path, monkeypatch):
    """However few are held otherwise; a set with fewer is refused."""
    monkeypatch.setattr("immiscible_policy.lab.clusters.MOST", 10)
    (row,) = lab("clusters", "n=20", "assigned=2", "pictures=4", arms=["over_2"])["rows"]
    assert row["n"] == 2 * 1024 // 40
    write_colours(tmp_path / "few", "train", 12)
    words = (f"runs={runs / 'over_2'}", f"data={tmp_path / 'few'}", f"out={tmp_path}")
    for pictures, message in ((4, "over_2: needs 40 samples, the data have 12"), (40, "pictures=40: ")):
        assert message in refused(here("-m", "immiscible_policy.lab", "clusters", f"pictures={pictures}", *words))


def numbers(figures):
    """All numbers in nested figures, in order."""
    if isinstance(figures, dict | list):
        parts = figures.values() if isinstance(figures, dict) else figures
        return [number for part in parts for number in numbers(part)]
    return [figures] if isinstance(figures, float) else []


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "words"),
    [("steps", ("n=200",)), ("bijection", ("observations=3", "perturbations=2", "sampling_steps=3"))],
)
def test_figures_on_cuda_are_those_on_the_cpu(lab, name, words):
    """All noises are drawn on the CPU, so that the device changes nothing but rounding."""
    on_cuda, on_cpu = (numbers(lab(name, *words, f"device={device}")["images"]) for device in ("cuda", "cpu"))
    assert len(on_cpu) > 5 and on_cuda == pytest.approx(on_cpu, rel=0.02, abs=0.01)


@pytest.mark.gpu
def test_maps_of_predictions_on_cuda_are_decided_as_on_the_cpu(lab):
    pytest.importorskip("sklearn")
    words = ("noises=20", "starts=12", "batch_size=16")
    maps = [lab("tsne", *words, f"device={device}")["predicted images"] for device in ("cuda", "cpu")]
    decided = [[*maps[place]["vanilla"]["decided"], *maps[place]["over_2"]["decided"]] for place in (0, 1)]
    assert decided[0] == pytest.approx(decided[1], rel=0.02, abs=0.01)


@pytest.mark.parametrize("name", ["steps", "tsne", "bijection", "scaling"])
def test_an_unknown_device_is_refused_in_one_line(name, runs, tmp_path):
    words = (f"runs={runs / 'vanilla'}", f"out={tmp_path}", "device=tpu")
    assert "device=tpu: choose from auto" in refused(here("-m", "immiscible_policy.lab", name, *words))


def test_steps_needs_as_many_samples_as_noise_was_chosen_for(runs, tmp_path):
    """Noise that is assigned within fewer samples is farther from them than what training showed."""
    found = checkpoint(runs, "over_2")
    about = found.metadata | {"config": found.config | {"batch_size": 150}}
    save_checkpoint(tmp_path / "wide/seed_0/checkpoints/step_000002", about, {"ema": found.tensors("ema")})
    (tmp_path / "wide/config.yaml").write_text(yaml.safe_dump(about["config"]))
    words = (f"runs={tmp_path / 'wide'}", f"out={tmp_path}", "n=200")
    assert "chose noise for 300 samples together; use n=300" in refused(
        here("-m", "immiscible_policy.lab", "steps", *words)
    )


@pytest.mark.slow
def test_steps_gives_stable_diffusion_the_prompts_of_its_images(images, tmp_path, monkeypatch):
    """Noise by c2ot compares them, and would be refused without."""
    monkeypatch.setattr(steps, "LAYERS", 5)
    monkeypatch.setattr(steps, "SHOWN", (0, 2, 4))
    words = ("model=sd", "scale=cpu", "pretrained=tiny", "noise=c2ot", "steps=1", "batch_size=50", "samples=2",
             "sampling_steps=2", "wandb=disabled", "guidance=1")  # fmt: skip
    done = here("train_image.py", f"data={images}", f"out={tmp_path / 'run'}", *words)
    assert done.returncode == 0, done.stderr
    found = RunDirectory(tmp_path / "run").seed(0).newest()
    rows = torch.arange(4)
    shown = steps.prompted(found, lab_runs.images_of(found, None))
    assert shown.prompts(rows) == ["bird", "cat", "bird", "cat"]
    measured = here("-m", "immiscible_policy.lab", "steps", f"runs={tmp_path / 'run'}", "n=200", f"out={tmp_path}")
    assert measured.returncode == 0, measured.stderr
    (layers,) = json.loads((tmp_path / "steps.json").read_text())["figures"]["images"]["layers"]["run"]
    assert len(layers["frechet"]) == 5 and all(math.isfinite(value) for key in layers for value in layers[key])
    about = found.metadata | {"config": found.config | {"prompts": "mine.txt"}}
    save_checkpoint(tmp_path / "other" / "step_000001", about, {"ema": found.tensors("ema")})
    with pytest.raises(ValueError, match=r"prompts=mine.txt are of its training images; train with prompts=own"):
        steps.prompted(read_checkpoint(tmp_path / "other" / "step_000001"), shown)


def of_a_folder(runs, data, place):
    """A checkpoint whose images lie in a folder, which has no split for tests."""
    found = checkpoint(runs, "vanilla")
    about = found.metadata | {"config": found.config | {"dataset": "folder", "data": str(data)}}
    save_checkpoint(place / "step_000002", about, {"ema": found.tensors("ema")})
    return read_checkpoint(place / "step_000002")


def test_images_without_a_split_for_tests_are_compared_with_the_others(runs, images, tmp_path):
    found = of_a_folder(runs, images / "train", tmp_path)
    figures = steps.measure_images({"folder": found}, {}, None, 90, 0, "cpu")
    features = reference_features(make_extractor("classifier"), lab_runs.images_of(found, None), torch.arange(200))
    order = torch.randperm(200, generator=torch_generator("cpu", "steps images", 0))
    assert figures["frechet_floor"] == pytest.approx(feature_distance(features[order[:90]], features[order[90:]]))
    with pytest.raises(ValueError, match="n=300: needs 600 images in each split, .* has 200; give data="):
        steps.measure_images({"folder": found}, {}, None, 300, 0, "cpu")


def test_the_last_noises_are_chosen_among_as_many_samples_as_the_others(runs):
    """Ten of 50 are left over from pools of 40: they are paired together with the 30 samples before them."""
    given = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    pools = []

    def samples(rows):
        pools.append(rows.tolist())
        return given[rows], None

    batches = list(steps.layer_batches(checkpoint(runs, "over_2"), samples, lambda rows: rows, 50, 0, plan=()))
    assert pools == [list(range(40)), list(range(10, 50))]
    assert torch.equal(torch.cat([batch.x for batch in batches]), given)
    assert torch.cat([batch.network for batch in batches]).tolist() == list(range(50))


def test_no_more_images_are_read_than_are_needed(runs, tmp_path):
    """A damaged image is noticed by those alone who ask for it."""
    for number in range(6):
        write_image(tmp_path / "set" / f"{number}.png", np.full((32, 32, 3), 40 * number, np.uint8))
    (tmp_path / "set" / "5.png").write_bytes(b"damaged")
    found = of_a_folder(runs, tmp_path / "set", tmp_path)
    assert len(lab_runs.images_of(found, None, count=4)) == 4
    assert lab_runs.clean_samples(found, None, 5, seed=0).shape == (5, 3, 8, 8)
    with pytest.raises(ValueError, match=r"5\.png cannot be read"):
        lab_runs.clean_samples(found, None, 6, seed=0)
