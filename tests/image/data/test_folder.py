"""Any folder of images."""

import numpy as np
import pytest

from immiscible_policy.image.data import load_images
from tests.image.data.layouts import every, noise, write, zipped, zipped_backwards


def test_a_flat_folder_comes_in_the_order_of_its_names_without_prompts(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / "set" / f"{number}.png", noise(number, 8, 8))
    for path in (tmp_path / "set", zipped(tmp_path / "set"), zipped_backwards(tmp_path / "set")):
        pixels, prompts = every(load_images("folder", path, size=8))
        np.testing.assert_array_equal(pixels, [noise(number, 8, 8).transpose(2, 0, 1) for number in range(3)])
        assert prompts is None


def test_class_folders_take_turns_and_name_the_prompts(tmp_path):
    for place, name in enumerate(("polar_bear", "cat")):
        for number in range(2):
            write(tmp_path / "set" / name / f"{number}.png", noise(10 * place + number, 8, 8))
    for path in (tmp_path / "set", zipped(tmp_path / "set"), zipped_backwards(tmp_path / "set")):
        pixels, prompts = every(load_images("folder", path, size=8))
        np.testing.assert_array_equal(pixels, [noise(seed, 8, 8).transpose(2, 0, 1) for seed in (10, 0, 11, 1)])
        assert prompts == ["cat", "polar bear", "cat", "polar bear"]


def test_a_single_class_folder_is_a_class(tmp_path):
    write(tmp_path / "cat" / "0.png", noise(0, 8, 8))
    assert every(load_images("folder", tmp_path, size=8))[1] == ["cat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "has no images; it should be a folder"),
        (("a.png", "cat/b.png"), "holds a.png and cat/b.png; it should be"),
        (("deep/cat/b.png",), "holds deep/cat/b.png and deep/cat/b.png; it should be"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, message):
    for name in names:
        write(tmp_path / "set" / name, noise(0, 8, 8))
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        load_images("folder", tmp_path / "set", size=8)


def test_a_size_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="size=None: a folder needs the side"):
        load_images("folder", tmp_path)
    with pytest.raises(ValueError, match="split=test: a folder has train"):
        load_images("folder", tmp_path, split="test", size=8)


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.tar").write_text("no zip")
    with pytest.raises(ValueError, match="a.tar is not a zip archive; it should be a folder"):
        load_images("folder", tmp_path / "a.tar", size=8)
