"""CelebA as it is published, in small."""

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.image.data import load_images
from tests.image.data.layouts import write, write_celeba, zipped


@pytest.fixture
def celeba(tmp_path):
    return write_celeba(tmp_path / "celeba")


def every(images):
    return images.pixels(torch.arange(len(images))).numpy()


def middle(path, size):
    """Columns 0..177 and rows 20..197 of a stored face, resized."""
    square = Image.open(path).crop((0, 20, 178, 198)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def test_splits_are_those_of_the_list_and_the_middle_square_is_seen(celeba):
    """The list reads 0021012: faces 1, 2 and 5 train, 4 and 6 validate, 3 and 7 test."""
    for split, numbers in {"train": (1, 2, 5), "valid": (4, 6), "test": (3, 7)}.items():
        images = load_images("celeba", celeba, split=split)
        assert (images.size, len(images)) == (64, len(numbers))
        faces = [middle(celeba / "img_align_celeba" / f"{number:06d}.jpg", 64) for number in numbers]
        np.testing.assert_array_equal(every(images), faces)
        assert images.prompts(torch.arange(2)) is None


def test_unresized_the_crop_is_exact(celeba):
    stored = np.asarray(Image.open(celeba / "img_align_celeba" / "000002.jpg"))
    images = load_images("celeba", celeba, size=178, limit=2)
    np.testing.assert_array_equal(every(images)[1], stored[20:198].transpose(2, 0, 1))


def test_every_place_that_the_download_may_lie_in_gives_the_same(celeba):
    archive = zipped(celeba / "img_align_celeba")
    expected = load_images("celeba", celeba)
    for path in (celeba / "img_align_celeba", archive):
        images = load_images("celeba", path)
        np.testing.assert_array_equal(every(images), every(expected))
        assert images.content_hash == expected.content_hash
    for file in (celeba / "img_align_celeba").iterdir():
        file.unlink()
    (celeba / "img_align_celeba").rmdir()
    np.testing.assert_array_equal(every(load_images("celeba", celeba)), every(expected))


def test_what_is_missing_is_named_in_one_line(celeba):
    def message(path):
        with pytest.raises(ValueError) as caught:
            load_images("celeba", path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nowhere is missing; CelebA is img_align_celeba.zip" in message(celeba / "nowhere")
    (celeba / "img_align_celeba" / "000005.jpg").unlink()
    assert "lacks 000005.jpg, which list_eval_partition.txt names" in message(celeba)
    (celeba / "list_eval_partition.txt").write_text("000001.jpg\n")
    assert "list_eval_partition.txt should have lines like '000001.jpg 0'" in message(celeba)
    (celeba / "list_eval_partition.txt").unlink()
    assert "list_eval_partition.txt is missing" in message(celeba)
    assert "mmlab.ie.cuhk.edu.hk" in message(celeba)
    (celeba / "empty").mkdir()
    assert "has no images of CelebA" in message(celeba / "empty")


def test_a_split_without_images_is_refused(celeba):
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(ValueError, match="list_eval_partition.txt lists no test images"):
        load_images("celeba", celeba, split="test")


def test_faces_that_are_not_the_aligned_ones_are_refused(celeba):
    write(celeba / "img_align_celeba" / "000001.jpg", np.zeros((400, 300, 3), np.uint8))
    with pytest.raises(ValueError, match="000001.jpg has 300x400 pixels; the published images have 178x218"):
        load_images("celeba", celeba)
