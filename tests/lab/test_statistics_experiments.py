"""The experiments on the noise itself: closed forms against sampling, laws, and their reports on tiny data."""

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.cli import parse
from immiscible_policy.lab import __main__ as command_line
from immiscible_policy.lab import clusters, distances, gaussianity
from immiscible_policy.lab.data import cifar_images, demonstrated_actions, latent_fields, root_mean_square
from immiscible_policy.lab.laws import expected_change, nearest_of_k, nearest_over
from immiscible_policy.lab.program import table
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import distance_change
from immiscible_policy.noise.audit.statistics import cluster_distances, gaussian_kl
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.tasks import find_task
from tests.random_numbers import generator

EXPERIMENTS = {
    "distances": distances.EXPERIMENT,
    "clusters": clusters.EXPERIMENT,
    "gaussianity": gaussianity.EXPERIMENT,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 40 random images in two classes, as CIFAR-10's."""
    path = tmp_path_factory.mktemp("cifar") / "images.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=0)
            archive.writestr(f"images/train/{('cat', 'dog')[number % 2]}/{number:04d}.png", buffer.getvalue())
    return path


def run(experiment: Experiment, **words: object) -> Findings:
    return experiment.measure({key: option.default for key, option in experiment.options.items()} | words)


class TestData:
    def test_actions_of_the_embedded_store_fill_minus_one_to_one(self):
        actions = demonstrated_actions(find_task("pusht"))
        assert actions.shape[1:] == (16, 2)
        assert actions.amin(dim=(0, 1)).tolist() == pytest.approx([-1, -1], abs=1e-5)
        assert actions.amax(dim=(0, 1)).tolist() == pytest.approx([1, 1], abs=1e-5)

    def test_human_store_gives_its_24208_windows(self, human_store):
        assert demonstrated_actions(find_task("pusht"), human_store).shape == (24_208, 16, 2)

    def test_pixels_are_bytes_brought_to_minus_one_to_one(self, images):
        pixels = cifar_images(images, 10)
        assert pixels.shape == (10, 3, 32, 32)
        assert ((pixels + 1) * 127.5 - ((pixels + 1) * 127.5).round()).abs().max() < 1e-4
        assert pixels.min() == -1 and pixels.max() == 1

    def test_missing_path_and_missing_images_say_what_to_do(self, images):
        with pytest.raises(ValueError, match="images=PATH.*torchvision"):
            cifar_images(None)
        with pytest.raises(ValueError, match="holds 40 training images; this experiment needs 41"):
            cifar_images(images, 41)

    def test_latent_fields_have_unit_variance_and_the_spectrum_of_natural_images(self):
        fields = latent_fields(400, generator())
        assert fields.shape == (400, 4, 32, 32)
        assert root_mean_square(fields) == pytest.approx(1, abs=0.02)
        power = torch.fft.fft2(fields).abs().square().mean(dim=(0, 1))  # (32, 32)
        assert float(power[0, 2] / power[0, 8]) == pytest.approx(16, rel=0.15)  # 1 / f^2


class TestLaws:
    @pytest.mark.parametrize(("dims", "r", "k"), [(1, 0.7, 4), (2, 0.0, 3), (32, 5.0, 4), (256, 8.0, 16)])
    def test_closed_form_is_what_the_literal_definition_gives(self, dims, r, k):
        n = 20_000
        x = torch.zeros(n, dims)
        x[:, 0] = r
        noise = make_selector("knn", k=k, form="literal")(x, generator=generator(dims))
        expected = nearest_of_k(r, dims, k)
        for measured, mean in (
            ((x - noise).norm(dim=1), expected.distance),
            (noise[:, 0], expected.projection),
            (noise.square().sum(dim=1), expected.squared_norm),
        ):
            assert float(measured.mean()) == pytest.approx(mean, abs=4.5 * float(measured.std()) / math.sqrt(n))

    def test_one_candidate_is_plain_noise(self):
        plain = nearest_of_k(27.0, 3072, 1)
        assert plain.projection == pytest.approx(0, abs=1e-6)
        assert plain.squared_norm == pytest.approx(3072, rel=1e-7)

    def test_in_one_dimension_at_zero_the_nearest_of_two_is_the_smaller_of_two_half_normals(self):
        assert nearest_of_k(0.0, 1, 2).distance == pytest.approx(2 / math.sqrt(math.pi) * (math.sqrt(2) - 1), abs=1e-5)

    def test_lengths_between_the_grid_are_interpolated_closely(self):
        x = torch.randn(30, 64, generator=generator()) * torch.linspace(0.2, 2, 30)[:, None]
        for row, result in zip(x, nearest_over(x, 8, lengths=24), strict=True):
            exact = nearest_of_k(float(row.norm()), 64, 8)
            assert result.distance == pytest.approx(exact.distance, rel=1e-3)
            assert result.projection == pytest.approx(exact.projection, abs=5e-3)

    def test_expected_change_is_within_the_interval_that_is_measured(self):
        x = 0.5 * torch.randn(2000, 48, generator=generator())
        result = distance_change(make_selector("knn", k=4), x, batch_size=1000, batches=40, generator=generator(1))
        low, high = result.interval
        reach = high - low
        assert low - reach < expected_change(x, 4) < high + reach
        assert reach < 0.5

    def test_published_knn_figures_are_those_of_unit_scale(self):
        """-1.10, -1.58 (D = 3,072) and -2.32 (D = 4,096) belong to data as large as the noise, not to pixels of 0.5."""
        unit, pixels = torch.ones(1, 3072), 0.5 * torch.ones(1, 3072)
        assert expected_change(unit, 4) == pytest.approx(-1.10, abs=0.05)
        assert expected_change(unit, 8) == pytest.approx(-1.58, abs=0.05)
        assert expected_change(pixels, 8) < -1.75
        assert expected_change(0.9 * torch.ones(1, 4096), 64) == pytest.approx(-2.32, abs=0.05)


class TestDistances:
    def test_report_without_images_measures_the_rest_and_says_what_is_missing(self, monkeypatch):
        monkeypatch.setattr(distances, "SIZES", (8, 32))
        monkeypatch.setattr(distances, "KNN_BATCH", 32)
        monkeypatch.setattr(distances, "KS", (2, 4))
        result = run(distances.EXPERIMENT, batches=2)
        assert set(result.figures["data"]) == {distances.LATENTS, distances.ACTIONS}
        assert "CIFAR-10 was not measured: pass images=PATH" in result.text
        changes = {(row["data"], row["name"], row["size"]): row["change"]["mean"] for row in result.figures["rows"]}
        assert len(changes) == 2 * (2 + 2) and max(changes.values()) < 0
        assert changes[distances.ACTIONS, "linear", 32] < changes[distances.ACTIONS, "linear", 8]

    def test_measured_knn_is_the_closed_form(self):
        x = latent_fields(600, generator())
        row = distances.change_of("knn", 8, distances.LATENTS, x, 4, seed=0)
        assert row["change"]["mean"] == pytest.approx(row["expected"], abs=0.15)


class TestClusters:
    def test_knn_clusters_lie_as_far_apart_as_the_closed_form_says(self):
        pictures = torch.randn(6, 48, generator=generator())
        noise = clusters.repeated_noise(make_selector("knn", k=8), pictures, 4000, generator(1))
        assert cluster_distances(noise).corrected == pytest.approx(clusters.expected_distance(pictures, 8), rel=0.03)

    def test_vanilla_is_its_floor(self):
        pictures = torch.randn(8, 100, generator=generator())
        result = cluster_distances(clusters.repeated_noise(make_selector("vanilla"), pictures, 500, generator(1)))
        assert result.mean == pytest.approx(result.floor, rel=0.05)
        assert clusters.raw_distance(0.0, 100, 500) == result.floor

    def test_assigned_noise_stays_with_its_picture(self):
        """Far apart on a line, the only assignment of two pictures' noises is the order on it."""
        x = torch.tensor([[-100.0], [100.0], [0.0]])
        noise = clusters.assigned_noise(make_selector("linear"), x, 2, 3, 50, generator())
        assert noise.shape == (2, 50, 1)
        assert bool((noise[0] < noise[1]).all())

    def test_too_few_pictures_are_refused_before_anything_is_read(self):
        with pytest.raises(ValueError, match="pictures=1: choose 2 to 128"):
            run(clusters.EXPERIMENT, pictures=1)

    def test_report_holds_every_selector_at_both_scales(self, images, monkeypatch):
        monkeypatch.setattr(clusters, "BATCHES", (8, 32))
        monkeypatch.setattr(clusters, "MOST", 40)
        result = run(clusters.EXPERIMENT, images=images, n=20, assigned=2, pictures=3)
        assert [row["option"] for row in result.figures["rows"]] == ["", *["k=8", "B=8", "B=32"] * 2]
        assert {round(row["rms"], 2) for row in result.figures["rows"][4:]} == {1.0}


class TestGaussianity:
    def test_noise_for_every_image_in_their_order(self):
        images = torch.randn(2500, 1, 2, 2, generator=generator())
        select = make_selector("knn", k=64)
        noise = gaussianity.noise_for(select, images, 3.0, generator(1))
        assert noise.shape == images.shape
        aligned = torch.nn.functional.cosine_similarity(noise.flatten(1), images.flatten(1))
        assert float(aligned.mean()) > 0.8

    def test_assignment_fits_the_same_gaussian_as_vanilla(self):
        images = torch.randn(1500, 20, generator=generator())
        kl = [
            gaussian_kl(gaussianity.noise_for(make_selector(name), images, 1.0, generator(1))).kl
            for name in ("vanilla", "linear")
        ]
        assert kl[0] == pytest.approx(kl[1], rel=1e-9)

    def test_too_few_noises_are_refused(self):
        with pytest.raises(ValueError, match="n=3072: use 3,073 or more"):
            run(gaussianity.EXPERIMENT, n=3072)

    @pytest.mark.slow
    def test_report_on_few_images(self):
        path = Path("../shared/data/cifar10-jpeg.zip")
        if not path.exists():
            pytest.skip("CIFAR-10 is not here")
        result = run(gaussianity.EXPERIMENT, images=path, n=4000)
        vanilla, knn, _, angle = (row["divergence"] for row in result.figures["rows"])
        assert abs(vanilla["excess"]) < 4 * vanilla["deviation"]
        assert knn["kl"] > vanilla["kl"]
        norms = [row["squared_norm"] / row["expected_norm"] for row in result.figures["rows"]]
        assert norms == pytest.approx([1] * 4, abs=2e-3)
        assert abs(angle["excess"]) < 6 * angle["deviation"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_usage_has_the_form_that_the_list_of_experiments_needs(name):
    lines = EXPERIMENTS[name].usage.splitlines()
    assert lines[0].startswith(f"usage: python -m immiscible_policy.lab {name}")
    assert lines[1] == "" and lines[2].endswith(".") and lines[3] == ""


@pytest.mark.slow
def test_the_command_writes_figures_picture_and_definitions(tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "SIZES", (8, 16))
    monkeypatch.setattr(distances, "KNN_BATCH", 8)
    command_line.EXPERIMENTS.run(["distances", "batches=2", f"out={tmp_path}"])
    record = json.loads((tmp_path / "distances.json").read_text())
    assert {row["size"] for row in record["figures"]["rows"]} == {*distances.KS, 8, 16}
    text = (tmp_path / "distances.md").read_text()
    assert text.startswith("## How much closer") and "- *Closed form*: KNN" in text and "python -m" not in text
    assert (tmp_path / "distances.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command_without_the_images_it_needs_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="images=PATH"):
        command_line.EXPERIMENTS.run(["gaussianity", f"out={tmp_path / 'here'}"])
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", command_line.NAMES)
def test_a_negative_seed_is_refused_by_its_name(name):
    given = command_line.EXPERIMENTS.load(name).options
    options = {key: option for key, option in given.items() if key not in ("grid", "runs")}  # which have to exist
    if "seed" in options:
        with pytest.raises(ValueError, match="seed=-1: needs 0 to"):
            parse(["seed=-1"], options, "")


def test_a_cell_whose_figure_is_missing_stays_empty():
    rows = [{"a": 1.25, "b": [2, 3]}, {"a": None, "b": [4, 5]}, {"b": [6, 7]}]
    lines = table({"a": "{a:+.1f}", "b": "{b[1]}"}, rows).splitlines()
    assert lines == ["| a | b |", "| --- | ---: |", "| +1.2 | 3 |", "|  | 5 |", "|  | 7 |"]
