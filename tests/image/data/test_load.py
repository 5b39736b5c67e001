"""Laws of every data set: memory and disk agree, threads agree, limits cut, hashes tell changes."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from immiscible_policy.image.data import DATASETS, load, load_images
from immiscible_policy.image.data.decode import Decoder
from tests.image.data.layouts import (
    noise,
    write,
    write_celeba,
    write_coco,
    write_imagenet,
    zipped,
    zipped_backwards,
)
from tests.image.folders import write_images

ON_DISK = tuple(name for name in DATASETS if name != "cifar10")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Every data set's published layout, by name."""
    root = tmp_path_factory.mktemp("sets")
    write_images(root / "cifar10", "train", 3)
    for number in range(5):
        write(root / "folder" / f"{number}.jpg", noise(number, 30 + number, 40))
    return {
        "cifar10": root / "cifar10",
        "celeba": write_celeba(root / "celeba"),
        "imagenet": write_imagenet(root / "imagenet"),
        "coco": write_coco(root / "coco"),
        "folder": root / "folder",
    }


@pytest.fixture
def from_disk(monkeypatch):
    """Nothing fits into memory."""
    monkeypatch.setattr(load, "MEMORY_BYTES", 0)


def every(images):
    rows = torch.arange(len(images))
    return images.pixels(rows), images.prompts(rows)


@pytest.mark.parametrize("name", ON_DISK)
def test_memory_and_disk_hold_the_same(layouts, name, monkeypatch):
    held = load_images(name, layouts[name], size=16)
    monkeypatch.setattr(load, "MEMORY_BYTES", len(held) * 3 * 16 * 16)
    assert isinstance(load_images(name, layouts[name], size=16).held, torch.Tensor)
    monkeypatch.setattr(load, "MEMORY_BYTES", len(held) * 3 * 16 * 16 - 1)
    read = load_images(name, layouts[name], size=16)
    assert isinstance(held.held, torch.Tensor) and isinstance(read.held, Decoder)
    assert (len(read), read.size) == (len(held), held.size) == (len(held), 16)
    assert torch.equal(every(held)[0], every(read)[0]) and every(held)[1] == every(read)[1]
    assert every(held)[0].dtype == torch.uint8 and every(held)[0].is_contiguous()


@pytest.mark.parametrize("name", DATASETS)
def test_a_limit_takes_the_first_and_rows_come_as_asked(layouts, name, monkeypatch):
    pixels, prompts = every(load_images(name, layouts[name], size=16))
    rows = torch.tensor([2, 0, 0, 1])
    for memory in (2**30, 0):
        monkeypatch.setattr(load, "MEMORY_BYTES", memory)
        first = load_images(name, layouts[name], size=16, limit=3)
        assert len(first) == 3 and torch.equal(first.pixels(rows), pixels[rows])
        assert first.prompts(rows) == (None if prompts is None else [prompts[row] for row in rows])
        assert len(load_images(name, layouts[name], size=16, limit=99)) == len(pixels)


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("path", ["imagenet", "cifar10"])
def test_eight_threads_get_the_same_pixels(layouts, path, memory, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_BYTES", memory)
    images = load_images(path, layouts[path], size=64)
    orders = [torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    expected = [images.pixels(rows) for rows in orders]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(images.pixels, orders), expected))


def test_eight_threads_read_one_zip(tmp_path, from_disk):
    for number in range(50):
        write(tmp_path / "set" / f"{number:02d}.png", noise(number, 20, 20))
    images = load_images("folder", zipped(tmp_path / "set"), size=20)
    expected = np.stack([noise(number, 20, 20).transpose(2, 0, 1) for number in range(50)])
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(images.pixels, [torch.arange(50)] * 16):
            np.testing.assert_array_equal(pixels, expected)


def test_a_zip_and_its_folder_are_the_same_set(layouts, monkeypatch):
    for memory in (2**30, 0):
        monkeypatch.setattr(load, "MEMORY_BYTES", memory)
        for name in ("folder", "cifar10"):
            sets = [load_images(name, path, size=16) for path in
                    (layouts[name], zipped(layouts[name]), zipped_backwards(layouts[name]))]  # fmt: skip
            assert len({images.content_hash for images in sets}) == 1
            assert all(torch.equal(every(images)[0], every(sets[0])[0]) for images in sets)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_the_hash_tells_other_images_orders_sizes_and_prompts(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_BYTES", memory)
    folder = tmp_path / "set"
    for place, name in enumerate(("bear", "cat")):
        for number in range(2):
            write(folder / name / f"{number}.png", noise(10 * place + number, 8, 8))

    def result(**options):
        return load_images("folder", folder, **{"size": 8} | options).content_hash

    hashes = [result()]
    assert result() == hashes[0]
    hashes += [result(size=4), result(limit=3)]
    write(folder / "cat" / "1.png", np.zeros((8, 8, 3), np.uint8))  # another image, of fewer bytes
    hashes.append(result())
    (folder / "cat" / "1.png").rename(folder / "bear" / "2.png")  # moved: another prompt, another order
    hashes.append(result())
    (folder / "bear").rename(folder / "lion")  # the same pixels in another order, with another prompt
    hashes.append(result())
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_limited_set_is_the_set_of_its_first_images(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_BYTES", memory)
    for number in range(4):
        write(tmp_path / "cat" / f"{number}.png", noise(number, 8, 8))
    limited = load_images("folder", tmp_path, size=8, limit=3).content_hash
    (tmp_path / "cat" / "3.png").unlink()
    assert load_images("folder", tmp_path, size=8).content_hash == limited


def test_on_disk_names_and_captions_count(tmp_path, from_disk):
    coco = write_coco(tmp_path / "coco")
    hashes = [load_images("coco", coco).content_hash]
    annotations = coco / "annotations" / "captions_train2017.json"
    annotations.write_text(annotations.read_text().replace("image 1", "picture 1"))
    hashes.append(load_images("coco", coco).content_hash)
    write(tmp_path / "set" / "a.png", noise(0, 8, 8)).rename(tmp_path / "set" / "b.png")
    hashes.append(load_images("folder", tmp_path / "set", size=8).content_hash)
    (tmp_path / "set" / "b.png").rename(tmp_path / "set" / "c.png")
    hashes.append(load_images("folder", tmp_path / "set", size=8).content_hash)
    assert len(set(hashes)) == 4


def test_interpolated_images_are_other_images(layouts):
    hashes = {load_images("cifar10", layouts["cifar10"], size=size).content_hash for size in (16, 32, 64, 128)}
    assert len(hashes) == 4


def test_in_memory_every_pixel_counts(tmp_path):
    pixels = noise(0, 8, 8)
    before, after = tmp_path / "a.png", tmp_path / "b.png"
    write(before, pixels, compress_level=0)
    hashes = [load_images("folder", tmp_path, size=8).content_hash]
    size, pixels[3, 4, 1] = before.stat().st_size, pixels[3, 4, 1] ^ 1
    write(before, pixels, compress_level=0)
    assert before.stat().st_size == size and not after.exists()
    assert load_images("folder", tmp_path, size=8).content_hash not in hashes


@pytest.mark.parametrize("memory", [2**30, 0])
def test_another_process_receives_the_same_set(layouts, memory, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_BYTES", memory)
    for path in (layouts["folder"], zipped(layouts["folder"])):
        images = load_images("folder", path, size=8)
        sent = pickle.loads(pickle.dumps(images))
        assert torch.equal(every(sent)[0], every(images)[0]) and sent.content_hash == images.content_hash


@pytest.mark.parametrize("memory", [2**30, 0])
def test_moved_to_a_device_pixels_come_from_there(layouts, memory, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_BYTES", memory)
    images = load_images("folder", layouts["folder"], size=8)
    moved = images.to("meta") if memory else images.to("cpu")
    assert moved.content_hash == images.content_hash and len(moved) == len(images)
    assert moved.pixels(torch.arange(3)).device.type == ("meta" if memory else "cpu")


def test_a_damaged_image_on_disk_is_named_when_it_is_asked_for(layouts, tmp_path, from_disk):
    write(tmp_path / "a.jpg", noise(0, 8, 8))
    (tmp_path / "b.jpg").write_text("no image")
    images = load_images("folder", tmp_path, size=8)
    assert images.pixels(torch.tensor([0])).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="b.jpg cannot be read as an image"):
        images.pixels(torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("mnist", {}, "dataset=mnist: choose from cifar10, celeba, imagenet, coco, folder"),
        ("cifar10", {"split": "val"}, "split=val: CIFAR-10 has train, test"),
        ("celeba", {"split": "val"}, "split=val: CelebA has train, valid, test"),
        ("cifar10", {"size": 12}, "size=12: averaging needs a side that divides 32"),
        ("imagenet", {"size": 0}, "size=0: needs 1 or more"),
        ("coco", {"limit": 0}, "limit=0: needs 1 or more"),
        ("imagenet", {}, "nowhere is missing; ImageNet is"),
        ("coco", {}, "nowhere is missing; MS-COCO is"),
        ("celeba", {}, "nowhere is missing; CelebA is"),
        ("cifar10", {}, "nowhere is missing; CIFAR-10 is"),
        ("folder", {"size": 8}, "nowhere is missing; it should be"),
    ],
)
def test_refusals_are_one_line(tmp_path, dataset, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_images(dataset, tmp_path / "nowhere", **options)
    assert "\n" not in str(caught.value)
