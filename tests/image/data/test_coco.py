"""MS-COCO as it is published, in small."""

import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.image.data import load_images
from tests.image.data.layouts import every, noise, write, write_coco


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco", 8)


def test_each_image_comes_with_one_of_its_captions(coco):
    """Image i is file 7i; of its captions 0..4 it has number CRC-32(file name) mod 5, on one line."""
    pixels, prompts = every(load_images("coco", coco, size=32))
    files = sorted((coco / "train2017").iterdir())
    assert prompts == [f"image {i} caption {zlib.crc32(file.name.encode()) % 5}." for i, file in enumerate(files)]
    assert len({prompt[-2] for prompt in prompts}) > 1
    for image, file in zip(pixels, files, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(file))[:, 8:40].transpose(2, 0, 1))


def test_prompts_do_not_depend_on_what_other_images_are_there(coco):
    _, prompts = every(load_images("coco", coco, size=8))
    assert every(load_images("coco", coco, size=8, limit=3))[1] == prompts[:3]
    (coco / "train2017" / f"{0:012d}.jpg").unlink()
    assert every(load_images("coco", coco, size=8))[1] == prompts[1:]


def test_side_256_and_gray_becomes_rgb(coco):
    write(coco / "train2017" / f"{0:012d}.jpg", noise(0, 256, 256), "L")
    images = load_images("coco", coco, limit=1)
    (image,) = images.pixels(torch.tensor([0]))
    assert images.size == 256 and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_what_is_missing_is_named_in_one_line(coco):
    def message(split="train"):
        with pytest.raises(ValueError) as caught:
            load_images("coco", coco, split=split, size=8)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no val2017/*.jpg; MS-COCO is a folder" in message("val")
    assert "split=test: MS-COCO has train, val" in message("test")
    annotations = coco / "annotations" / "captions_train2017.json"
    content = json.loads(annotations.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in (103, 105)]
    annotations.write_text(json.dumps(content))
    assert f"train2017/{21:012d}.jpg has no caption, as 2 of 8 images" in message()
    for damaged in ("{", '{"images": []}', "[]", '{"images": [], "annotations": [{"id": 1, "image_id": 2}]}'):
        annotations.write_text(damaged)
        assert "has no captions of MS-COCO; is the download complete?" in message()
    annotations.unlink()
    assert "captions_train2017.json is missing; MS-COCO is" in message()
    assert "cocodataset.org" in message()
