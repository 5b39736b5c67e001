"""CIFAR-10: folder, zip, torchvision's directory."""

import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from immiscible_policy.image.data import load_images, shrink, to_bytes, to_pixels
from immiscible_policy.image.data.published import list_cifar10
from tests.image.data.layouts import zipped
from tests.image.folders import load_cifar10, write_image, write_images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cifar"


def test_a_folder_gives_its_pixels_the_classes_in_turn(folder):
    written = write_images(folder, "train", 3)
    write_images(folder, "test", 1)
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / "._0000.png").write_text("what other systems leave")
    images = load_cifar10(folder)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images, written)
    assert len(load_cifar10(folder, "test")) == 2


def test_a_zip_and_a_folder_around_give_the_same(folder):
    written = write_images(folder, "train", 2)
    np.testing.assert_array_equal(load_cifar10(zipped(folder)), written)
    np.testing.assert_array_equal(load_cifar10(folder.parent), written)


def test_limit_takes_the_first(folder):
    written = write_images(folder, "train", 3)
    np.testing.assert_array_equal(load_cifar10(folder, limit=3), written[:3])


def test_size_averages_blocks_and_rounds(folder):
    written = write_images(folder, "train", 2)
    blocks = written.astype(float).reshape(-1, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(load_cifar10(folder, size=16).numpy(), blocks, atol=0.5)
    np.testing.assert_allclose(shrink(torch.from_numpy(written), 16).numpy(), blocks, atol=0.5)


def test_bytes_and_pixels_invert_each_other():
    values = torch.arange(256, dtype=torch.uint8)
    pixels = to_pixels(values)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    torch.testing.assert_close(to_bytes(pixels), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((32, 32), np.uint8), "grayscale"),
        (np.zeros((28, 32, 3), np.uint8), "32x28 pixels"),
    ],
)
def test_images_of_another_kind_are_refused_by_name(folder, pixels, message):
    write_image(folder / "train" / "cat" / "odd.png", pixels)
    with pytest.raises(ValueError, match=f"train/cat/odd.png .*{message}"):
        load_cifar10(folder)


def test_an_unreadable_image_is_refused_by_name(folder):
    write_images(folder, "train", 1)
    whole = (folder / "train" / "cat" / "0000.png").read_bytes()
    (folder / "train" / "cat" / "0001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="0001.png cannot be read"):
        load_cifar10(folder)


def test_what_is_missing_is_named_with_what_to_download(tmp_path):
    with pytest.raises(ValueError, match="nowhere is missing; CIFAR-10 is a folder"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no train images"):
        load_cifar10(tmp_path)
    (tmp_path / "cifar.zip").write_text("no zip")
    with pytest.raises(ValueError, match="not a zip archive"):
        load_cifar10(tmp_path / "cifar.zip")


@pytest.mark.parametrize(
    ("options", "message"), [({"split": "val"}, "split=val"), ({"limit": 0}, "limit=0"), ({"size": 12}, "size=12")]
)
def test_bad_options_are_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path / "nowhere", **options)


def test_torchvisions_directory_is_read_by_torchvision(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)

    class CIFAR10:
        def __init__(self, root, train, download):
            assert (Path(root), train, download) == (tmp_path, False, False)
            self.data, self.targets, self.classes = pixels, [1, 0, 1, 1], ["cat", "dog"]

    datasets = types.ModuleType("torchvision.datasets")
    datasets.CIFAR10 = CIFAR10
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for path in (tmp_path, batches):
        np.testing.assert_array_equal(load_cifar10(path, "test", limit=3), pixels[:3].transpose(0, 3, 1, 2))
        images = load_images("cifar10", path, split="test", limit=3)
        assert images.prompts(torch.arange(3)) == ["dog", "cat", "dog"]


def test_without_torchvision_its_directory_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match="pip install torchvision"):
        load_cifar10(tmp_path)


def test_prompts_are_the_classes_and_stay_with_their_pixels(folder):
    written = torch.from_numpy(write_images(folder, "train", 3, ("deer", "sea_horse")))
    for path in (folder, zipped(folder)):
        images = load_images("cifar10", path, limit=5)
        rows = torch.tensor([4, 1, 0])
        assert images.prompts(rows) == ["deer", "sea horse", "deer"]
        assert torch.equal(images.pixels(rows), written[rows])


def test_smaller_sizes_are_averaged_and_larger_ones_interpolated(folder):
    written = torch.from_numpy(write_images(folder, "train", 2))
    rows = torch.tensor([3, 0])
    assert torch.equal(load_images("cifar10", folder, size=8).pixels(rows), shrink(written[rows], 8))
    larger = load_images("cifar10", folder, size=64)
    expected = torch.nn.functional.interpolate(written[rows].double(), scale_factor=2, mode="bicubic")
    assert larger.size == 64 and larger.held.shape[-1] == 32
    assert (larger.pixels(rows) - expected.clamp(0, 255)).abs().max() < 0.51


def test_enlarging_keeps_colours_and_clips(folder):
    flat = np.full((32, 32, 3), (0, 128, 255), np.uint8)
    write_image(folder / "train" / "cat" / "0.png", flat)
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255  # a cubic filter overshoots at edges
    write_image(folder / "train" / "cat" / "1.png", edge)
    even, sharp = load_images("cifar10", folder, size=96).pixels(torch.arange(2))
    assert (even == torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1)).all()
    assert (sharp[:, :, :45] == 0).all() and (sharp[:, :, 51:] == 255).all()


def test_the_published_images_are_all_there_the_classes_in_turn(real_cifar10):
    assert [len(list_cifar10(real_cifar10, split).files) for split in ("train", "test")] == [50_000, 10_000]
    images = load_images("cifar10", real_cifar10, limit=1000)
    assert Counter(images.prompts(torch.arange(1000))) == dict.fromkeys(CLASSES, 100)
    assert float(to_pixels(images.pixels(torch.arange(1000))).std()) == pytest.approx(0.5, abs=0.03)
