"""The classifier: the one of the package, training as a function of its arguments, files that are refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.train_classifier import main, read_labelled
from immiscible_policy.image.evaluation.classifier import (
    BUNDLED,
    Classifier,
    ClassifierSpec,
    load_classifier,
)
from immiscible_policy.recipes.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    accuracy,
    save_classifier,
    train_classifier,
)
from tests.conftest import ROOT
from tests.image.folders import write_images

SPEC = ClassifierSpec(size=8, widths=(8, 16))  # with four, convolutions of oneDNN crash on some processors
TEN = tuple(f"class{number}" for number in range(10))


def random_images(count: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_features_are_what_the_head_sees():
    model = Classifier(SPEC).eval()
    pixels = torch.randn(5, 3, 8, 8)
    result = model.features(pixels)
    assert result.shape == (5, 16)
    torch.testing.assert_close(model(pixels), model.head(result))


def test_the_packages_classifier_is_small_and_its_record_names_it():
    model, digest = load_classifier(BUNDLED)
    record = json.loads(BUNDLED.with_suffix(".json").read_text())
    assert BUNDLED.stat().st_size < 1_000_000
    assert record["sha256"] == digest and record["test_accuracy"] > 0.7
    assert (model.spec.size, model.features(torch.zeros(1, 3, 16, 16)).shape) == (16, (1, 96))
    assert not model.training


@pytest.mark.slow
def test_the_packages_classifier_knows_cifar10():
    """Its recorded accuracy, on the test images."""
    path = Path(os.environ.get("CIFAR10", ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"))
    if not path.exists():
        pytest.skip("CIFAR-10 is not here; CIFAR10=PATH names it")
    images, labels, _ = read_labelled(path, "test", 16)
    recorded = json.loads(BUNDLED.with_suffix(".json").read_text())["test_accuracy"]
    assert accuracy(load_classifier(BUNDLED)[0], images, labels) == pytest.approx(recorded, abs=2e-3)


def test_batches_are_shifted_and_mirrored_images():
    """Every image of a batch is one of the 2 x 3 x 3 ways to shift an image by up to a pixel, and mirror it."""
    images, labels = random_images(6), torch.arange(6)
    objective = ClassifierObjective(Classifier(SPEC), images, labels, ClassifierTraining(batch_size=6))
    seen = set()
    for step in range(8):
        pixels, named = objective.batches(step)[0]
        for image, label in zip(((pixels + 1) * 127.5).round().to(torch.uint8), named.tolist(), strict=True):
            padded = torch.nn.functional.pad(images[label], (1, 1, 1, 1))
            ways = {
                (top, left, mirrored)
                for top in range(3)
                for left in range(3)
                for mirrored in (False, True)
                if torch.equal(image, _cut(padded, top, left, mirrored))
            }
            assert len(ways) == 1
            seen |= ways
    assert len(seen) == 18


def _cut(padded: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    cut = padded[:, top : top + 8, left : left + 8]
    return cut.flip(-1) if mirrored else cut


def test_training_tells_dark_from_bright_and_repeats_itself():
    labels = torch.arange(64) % 2
    images = (random_images(64) // 4 + 120 * labels.view(-1, 1, 1, 1).to(torch.uint8)).to(torch.uint8)
    training = ClassifierTraining(epochs=12, batch_size=16)
    rows = []
    first, again = (train_classifier(images, labels, SPEC, training, rows.append) for _ in range(2))
    assert accuracy(first, images, labels) == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert rows[11]["loss"] < rows[0]["loss"]


def test_what_is_saved_is_loaded(tmp_path):
    model = Classifier(SPEC).eval()
    digest = save_classifier(tmp_path / "small.safetensors", model, {"test_accuracy": 0.5})
    loaded, result = load_classifier(tmp_path / "small.safetensors")
    assert (result, loaded.spec) == (digest, SPEC)
    pixels = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(pixels), model(pixels))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    path = tmp_path / "small.safetensors"
    with pytest.raises(ValueError, match="small.safetensors is missing"):
        load_classifier(path)
    save_classifier(path, Classifier(SPEC), {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its hash differs"):
        load_classifier(path)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match="describes no classifier"):
        load_classifier(path)


def test_the_command_trains_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 13), ("test", 1)):
        write_images(tmp_path / "cifar", split, count, TEN)
    out = tmp_path / "new" / "classifier.safetensors"
    threads = torch.get_num_threads()
    try:
        main([f"data={tmp_path / 'cifar'}", f"out={out}", "size=8", "epochs=1"])
    finally:
        torch.set_num_threads(threads)
    record = json.loads(out.with_suffix(".json").read_text())
    assert load_classifier(out)[0].spec.size == 8
    assert record["training"]["epochs"] == 1 and str(tmp_path) not in json.dumps(record)
    assert "test accuracy" in capsys.readouterr().out


def test_other_data_and_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "cifar", "train", 1)
    with pytest.raises(ValueError, match="train has 2 classes; CIFAR-10 has 10"):
        read_labelled(tmp_path / "cifar", "train", 8)
    with pytest.raises(CommandError, match="must end in .safetensors"):
        main([f"data={tmp_path}", "out=weights.pt"])
    with pytest.raises(CommandError, match="epochs=0: needs 1 to"):
        main([f"data={tmp_path}", f"out={tmp_path / 'untrained.safetensors'}", "epochs=0"])
