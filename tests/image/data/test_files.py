"""Where encoded images lie: folder and zip answer alike."""

import os

import pytest

from immiscible_policy.image.data.files import ImageFile, find, in_turn, open_source
from tests.image.data.layouts import zipped, zipped_backwards


@pytest.fixture
def folder(tmp_path):
    names = ("train/cat/1.png", "train/cat/0.JPEG", "train/dog/0.jpg", "train/cat/._0.png", "train/.hidden/0.png",
             "train/cat/notes.txt", "test/cat/0.png", "loose.png")  # fmt: skip
    for number, name in enumerate(names):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"." * (number + 1))
    return tmp_path / "set"


def sizes(source, within):
    return sorted((file.name, file.size) for file in source.images(within))


def test_images_are_listed_with_their_sizes_and_nothing_else(folder):
    expected = [("cat/0.JPEG", 2), ("cat/1.png", 1), ("dog/0.jpg", 3)]
    for path in (folder, zipped_backwards(folder)):
        assert sizes(open_source(path, ""), "train") == expected
        assert ("loose.png", 8) in sizes(open_source(path, ""), "")
    assert sizes(open_source(zipped(folder), ""), "set/train") == expected


def test_a_folder_is_found_at_the_top_or_one_further_down(folder):
    for path in (folder, zipped_backwards(folder)):
        assert find(open_source(path, ""), "train") == "train"
        assert find(open_source(path, ""), "nothing", "cat") == "test/cat"
        assert find(open_source(path, ""), "nothing") is None
    for path in (folder.parent, zipped(folder)):
        assert find(open_source(path, ""), "nothing", "train") == "set/train"


def test_what_macos_adds_to_a_zip_is_not_taken_for_the_images(folder):
    (folder / "__MACOSX" / "val").mkdir(parents=True)
    (folder / "__MACOSX" / "val" / "._0.png").touch()
    for path in (folder, zipped_backwards(folder)):
        assert find(open_source(path, ""), "val") is None


def test_content_is_read_by_name(folder):
    for path in (folder, zipped_backwards(folder)):
        assert open_source(path, "").read("train/dog/0.jpg") == b"..."


def test_the_stamp_tells_other_content_of_the_same_size(folder):
    def stamp(path):
        return next(file.stamp for file in open_source(path, "").images("") if file.name.endswith("train/cat/1.png"))

    before = stamp(folder), stamp(zipped(folder))
    file = folder / "train" / "cat" / "1.png"
    later = file.stat().st_mtime_ns + 1
    file.write_bytes(b"!")
    os.utime(file, ns=(later, later))
    assert stamp(folder) != before[0] and stamp(zipped(folder)) != before[1]


def test_classes_take_turns_until_the_smaller_ones_are_empty():
    names = ["b/2.png", "a/1.png", "c/1.png", "b/1.png", "b/3.png"]
    ordered = in_turn(ImageFile(name, 1, 0) for name in names)
    assert [file.name for file in ordered] == ["a/1.png", "b/1.png", "c/1.png", "b/2.png", "b/3.png"]


def test_class_and_depth_of_a_name():
    assert [ImageFile(name, 1, 0).class_name for name in ("a.png", "cat/a.png", "x/cat/a.png")] == ["", "cat", "cat"]
    assert [ImageFile(name, 1, 0).depth for name in ("a.png", "cat/a.png", "x/cat/a.png")] == [0, 1, 2]


def test_a_link_that_leads_nowhere_is_no_image(folder):
    (folder / "train" / "cat" / "2.png").symlink_to(folder / "gone.png")
    (folder / "train" / "cat" / "3.png").symlink_to(folder / "loose.png")
    assert ("cat/3.png", 8) in sizes(open_source(folder, ""), "train")
    assert len(sizes(open_source(folder, ""), "train")) == 4


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "set.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"set.zip is not a zip archive; wanted$"):
        open_source(tmp_path / "set.zip", "wanted")
