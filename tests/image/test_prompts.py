"""Which prompts images are trained with."""

import pytest
import torch

from immiscible_policy.image.data import Images
from immiscible_policy.image.data.images import prompts_for


def named(names=None) -> Images:
    """Three images of four pixels, with names or without."""
    return Images(torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2), 2, "abc", names)


ROWS = torch.tensor([2, 0])
NAMED = named(["cat", "bird", "ship"])


def test_the_images_own_prompts():
    assert prompts_for(NAMED, "own").prompts(ROWS) == ["ship", "cat"]
    with pytest.raises(ValueError, match="prompts=own: these images have none"):
        prompts_for(named(), "own")


def test_none_hides_the_images_prompts():
    hidden = prompts_for(NAMED, "none")
    assert hidden.prompts(ROWS) is None
    assert (len(hidden), hidden.size, hidden.content_hash) == (3, 2, "abc")


def test_a_file_gives_a_prompt_per_image_and_an_empty_line_the_empty_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat, sitting\n\nein Schiff im Nebel – früh\n", encoding="utf-8")
    images = prompts_for(NAMED, str(file))
    assert images.prompts(ROWS) == ["ein Schiff im Nebel – früh", "a cat, sitting"]
    assert images.prompts(torch.tensor([1])) == [""]
    assert torch.equal(images.pixels(ROWS), NAMED.pixels(ROWS))
    moved = images.to("meta")
    assert moved.pixels(ROWS).device.type == "meta" and moved.prompts(ROWS) == images.prompts(ROWS)
    assert moved.content_hash == images.content_hash != NAMED.content_hash
    file.write_text("a cat\n\na ship\n")
    assert prompts_for(NAMED, str(file)).content_hash != images.content_hash


@pytest.mark.parametrize("text", ["one\ntwo\n", "one\ntwo\nthree\nfour", "one\ntwo\nthree\n\n"])
def test_a_file_of_the_wrong_length_is_refused_with_both_numbers(tmp_path, text):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    lines = 2 if text == "one\ntwo\n" else 4
    with pytest.raises(ValueError, match=f"prompts.txt has {lines} lines for 3 images"):
        prompts_for(NAMED, str(file))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clas: no such file; known besides files: own, none"):
        prompts_for(NAMED, "clas")
    (tmp_path / "latin.txt").write_bytes("früh".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 text"):
        prompts_for(NAMED, str(tmp_path / "latin.txt"))
