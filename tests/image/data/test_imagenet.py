"""ImageNet as it is published, in small."""

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.image.data import load_images
from tests.image.data.layouts import every, noise, write, write_imagenet

NAMES = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"]


@pytest.fixture
def imagenet(tmp_path):
    return write_imagenet(tmp_path / "imagenet")


def test_classes_take_turns_and_prompts_are_all_their_names(imagenet):
    pixels, prompts = every(load_images("imagenet", imagenet, size=32))
    assert prompts == NAMES * 2
    for row, image in enumerate(pixels):
        folder = sorted((imagenet / "train").iterdir())[row % 3]
        stored = Image.open(sorted(folder.iterdir())[row // 3])
        side = min(stored.size)
        left, top = (stored.width - side) // 2, (stored.height - side) // 2
        square = stored.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(square).transpose(2, 0, 1))


def test_prompts_stay_with_their_pixels_under_a_limit_and_in_any_order(imagenet):
    pixels, prompts = every(load_images("imagenet", imagenet, size=16))
    first = load_images("imagenet", imagenet, size=16, limit=4)
    rows = torch.tensor([3, 0, 2, 3])
    np.testing.assert_array_equal(first.pixels(rows), pixels[rows])
    assert len(first) == 4 and first.prompts(rows) == [prompts[row] for row in rows]


def test_side_256_unless_another_is_asked_for(imagenet):
    images = load_images("imagenet", imagenet, limit=1)
    assert images.size == 256 and images.pixels(torch.tensor([0])).shape == (1, 3, 256, 256)


def test_the_challenges_own_layout_gives_the_same(imagenet, tmp_path):
    kaggle = write_imagenet(tmp_path / "kaggle", below="ILSVRC/Data/CLS-LOC")
    expected = every(load_images("imagenet", imagenet, size=16))
    for path in (kaggle, kaggle / "ILSVRC" / "Data" / "CLS-LOC"):
        pixels, prompts = every(load_images("imagenet", path, size=16))
        np.testing.assert_array_equal(pixels, expected[0])
        assert prompts == expected[1]


def test_a_words_file_will_do(imagenet):
    (imagenet / "LOC_synset_mapping.txt").unlink()
    (imagenet / "words.txt").write_text("n01440764\ttench, Tinca tinca\nn01443537\tgoldfish\nn01484850\tman-eater\n")
    names = every(load_images("imagenet", imagenet, size=16, limit=3))[1]
    assert names == ["tench, Tinca tinca", "goldfish", "man-eater"]


def test_grayscale_and_cmyk_photographs_become_rgb(imagenet):
    for mode, name in (("L", "n01440764"), ("CMYK", "n01443537")):
        write(imagenet / "train" / name / "0.JPEG", noise(0, 20, 20), mode)  # the first of its class by name
    pixels, _ = every(load_images("imagenet", imagenet, size=20, limit=2))
    gray = np.asarray(Image.open(imagenet / "train" / "n01440764" / "0.JPEG"))
    np.testing.assert_array_equal(pixels[0], np.stack([gray] * 3))
    cmyk = Image.open(imagenet / "train" / "n01443537" / "0.JPEG").convert("RGB")
    np.testing.assert_array_equal(pixels[1], np.asarray(cmyk).transpose(2, 0, 1))


def test_what_is_missing_is_named_in_one_line(imagenet):
    def message(path, split="train"):
        with pytest.raises(ValueError) as caught:
            load_images("imagenet", path, split=split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nowhere is missing; ImageNet is a folder" in message(imagenet / "nowhere")
    assert "has no val/nXXXXXXXX/*.JPEG" in message(imagenet, "val")
    (imagenet / "val").mkdir()
    (imagenet / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    assert "has no val/nXXXXXXXX/*.JPEG" in message(imagenet, "val")
    assert "split=test: ImageNet has train, val" in message(imagenet, "test")
    (imagenet / "LOC_synset_mapping.txt").write_text("n01440764 tench\nn01484850 shark\n")
    assert "does not name the class n01443537" in message(imagenet)
    (imagenet / "LOC_synset_mapping.txt").unlink()
    assert "LOC_synset_mapping.txt is missing, nor is there synset_words.txt or words.txt; ImageNet is" in message(
        imagenet
    )
    (imagenet / "file").touch()
    assert "is a file; ImageNet is a folder" in message(imagenet / "file")
