import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from immiscible_policy.image.data import load_cifar10, shrink, to_bytes, to_pixels
from tests.conftest import ROOT
from tests.image.folders import write_image, write_images


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cifar"


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


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
    torch.testing.assert_close(shrink(torch.from_numpy(written).double(), 16), torch.from_numpy(blocks))


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
    with pytest.raises(ValueError, match="holds no train images"):
        load_cifar10(tmp_path)
    (tmp_path / "cifar.zip").write_text("no zip")
    with pytest.raises(ValueError, match="no zip archive"):
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
            self.data = pixels

    datasets = types.ModuleType("torchvision.datasets")
    datasets.CIFAR10 = CIFAR10
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for path in (tmp_path, batches):
        np.testing.assert_array_equal(load_cifar10(path, "test", limit=3), pixels[:3].transpose(0, 3, 1, 2))


def test_without_torchvision_its_directory_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match="pip install torchvision"):
        load_cifar10(tmp_path)


def test_cifar10_has_pixels_of_standard_deviation_one_half():
    path = ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"
    if not path.exists():
        pytest.skip("CIFAR-10 is not here")
    images = load_cifar10(path, "train", limit=500)
    assert images.shape == (500, 3, 32, 32)
    assert float(to_pixels(images).std()) == pytest.approx(0.5, abs=0.03)
