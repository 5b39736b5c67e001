"""Decoded images kept between runs."""

import os

import numpy as np
import pytest
import torch

from immiscible_policy.image.data import decode as caching
from immiscible_policy.image.data import load_images
from immiscible_policy.image.data.decode import Decoder
from tests.image.data.layouts import noise, write, zipped
from tests.image.folders import load_cifar10, write_images


@pytest.fixture(autouse=True)
def keep_all(monkeypatch):
    """However few they are."""
    monkeypatch.setattr(caching, "FROM_BYTES", 0)


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "cifar", "train", 2)
    return tmp_path / "cifar"


@pytest.fixture
def decodings(monkeypatch):
    """Grows by one whenever all images are decoded."""
    calls, decode = [], Decoder.all
    monkeypatch.setattr(Decoder, "all", lambda decoder: calls.append(1) or decode(decoder))
    return calls


def test_the_second_time_nothing_is_decoded(folder, cache, decodings):
    first = load_cifar10(folder)
    assert torch.equal(load_cifar10(folder), first) and len(decodings) == 1
    assert [file.suffix for file in cache.iterdir()] == [".npy"]
    first[0] = 0  # what is handed out is not what is kept
    assert not torch.equal(load_cifar10(folder), first)


def test_a_changed_image_is_decoded_anew(folder, decodings):
    """Also if its new content takes as many bytes as the old."""
    file = write(folder / "train" / "bird" / "0000.png", noise(0, 32, 32), compress_level=0)
    before, status = load_cifar10(folder), file.stat()
    write(file, np.zeros((32, 32, 3), np.uint8), compress_level=0)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    after = load_cifar10(folder)
    assert file.stat().st_size == status.st_size and len(decodings) == 2
    assert not after[0].any() and torch.equal(after[1:], before[1:])


def test_other_limits_sizes_and_places_do_not_mix(folder, tmp_path, decodings):
    everything = load_cifar10(folder)
    assert torch.equal(load_cifar10(folder, limit=3), everything[:3])
    assert torch.equal(load_cifar10(zipped(folder)), everything)
    write(tmp_path / "set" / "a.png", noise(0, 8, 8))
    shapes = [load_images("folder", tmp_path / "set", size=size).held.shape for size in (8, 4)]
    assert shapes == [(1, 3, 8, 8), (1, 3, 4, 4)]


def test_few_images_are_not_kept(folder, cache, monkeypatch):
    monkeypatch.setattr(caching, "FROM_BYTES", 2**24)
    load_cifar10(folder)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_told_and_done_without(folder, cache, capsys):
    cache.parent.mkdir()
    cache.write_text("a file where the directory should be")
    assert len(load_cifar10(folder)) == 4
    assert capsys.readouterr().err.startswith("decoded images are not kept for the next run: ")


def test_an_interrupted_write_leaves_nothing_that_is_read(folder, cache, monkeypatch, decodings):
    def interrupted(file, array):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(caching.np, "save", interrupted)
    first = load_cifar10(folder)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    assert torch.equal(load_cifar10(folder), first)
