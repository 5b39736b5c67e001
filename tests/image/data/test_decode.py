"""From encoded images to pixels: geometry by hand, colours, damaged files."""

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.image.data.decode import Decoder, Shape
from immiscible_policy.image.data.published import list_folder
from tests.image.data.layouts import noise, read, write


def decoded(folder, shape):
    """All images below a folder."""
    return Decoder(list_folder(folder, "train"), shape).all().numpy()


def test_an_image_of_the_wanted_size_keeps_every_pixel(tmp_path):
    pixels = noise(0, 20, 20)
    write(tmp_path / "a.png", pixels)
    write(tmp_path / "b.jpg", pixels)
    images = decoded(tmp_path, Shape(20))
    np.testing.assert_array_equal(images[0], pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], read(tmp_path / "b.jpg"))


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 30), (21, 20), (20, 25)])
def test_the_square_in_the_middle_is_what_remains(tmp_path, width, height):
    """White but for the middle square: no trace of white is left, and all of the square is there."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - 20) // 2, (width - 20) // 2
    pixels[top : top + 20, left : left + 20] = (200, 100, 50)
    pixels[top : top + 10, left : left + 10] = (10, 20, 30)
    write(tmp_path / "a.png", pixels)
    image = decoded(tmp_path, Shape(10))[0].transpose(1, 2, 0)
    assert (image[:3, :3] == (10, 20, 30)).all() and (image[-3:] == (200, 100, 50)).all()
    assert image.max() < 230


def test_a_crop_of_whole_pixels_without_resizing_is_exact(tmp_path):
    pixels = noise(1, 30, 20)
    write(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(decoded(tmp_path, Shape(20))[0], pixels[:, 5:25].transpose(2, 0, 1))


def test_shrinking_is_antialiased(tmp_path):
    """A chessboard of black and white pixels becomes grey: plain sampling of every fourth pixel would not."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    write(tmp_path / "a.png", np.stack([board] * 3, axis=-1))
    (image,) = decoded(tmp_path, Shape(16))
    assert 110 < image[:, 2:-2, 2:-2].min() and image[:, 2:-2, 2:-2].max() < 145


def test_a_large_jpeg_that_is_reduced_while_it_is_decoded_shows_the_same(tmp_path):
    """A slope of colours is reproduced by both ways of shrinking alike."""
    slope = np.broadcast_to(np.linspace(0, 255, 256).astype(np.uint8)[:, None, None], (256, 256, 3))
    write(tmp_path / "a.png", slope)
    write(tmp_path / "b.jpg", slope, quality=95)
    plain, reduced = decoded(tmp_path, Shape(16)).astype(int)
    assert np.abs(plain - reduced).max() <= 2


@pytest.mark.parametrize(
    ("name", "mode"), [("a.jpg", "L"), ("a.jpg", "CMYK"), ("a.png", "P"), ("a.png", "RGBA"), ("a.png", "LA")]
)
def test_other_colours_become_rgb(tmp_path, name, mode):
    flat = np.full((16, 16, 3), 102, np.uint8)
    write(tmp_path / name, flat, mode)
    assert Image.open(tmp_path / name).mode == mode
    assert np.abs(decoded(tmp_path, Shape(16)).astype(int) - 102).max() <= 2


def test_sixteen_bits_are_refused(tmp_path):
    write(tmp_path / "deep.png", np.full((8, 8), 40_000, np.uint16))
    with pytest.raises(ValueError, match="deep.png has mode I;16, more than 8 bits"):
        decoded(tmp_path, Shape(8))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_photographs_are_shown_upright(tmp_path, orientation, turns):
    """EXIF 6: the camera was turned, the stored rows are to be rotated clockwise by a quarter."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    (image,) = decoded(tmp_path, Shape(16))
    upright = np.rot90(pixels[:, 4:20], turns).transpose(2, 0, 1)
    assert np.abs(image.astype(int) - upright).max() < 40


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_a_damaged_image_is_named(tmp_path, content):
    whole = write(tmp_path / "cat" / "a.jpg", noise(0, 64, 64)).read_bytes()
    (tmp_path / "cat" / "b.jpg").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"cat/b.jpg cannot be read as an image; is the download complete\?$"):
        decoded(tmp_path, Shape(16))


def test_a_damaged_png_is_named(tmp_path):
    whole = write(tmp_path / "a.png", noise(0, 64, 64)).read_bytes()
    for place in (20, 40, len(whole) // 2, len(whole) - 20):
        (tmp_path / "a.png").write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
        with pytest.raises(ValueError, match="a.png cannot be read"):
            decoded(tmp_path, Shape(16))


def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    write(tmp_path / "huge.png", np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match="huge.png has too many pixels to be decoded safely; make it smaller"):
        decoded(tmp_path, Shape(8))


def test_an_image_of_another_size_than_published_is_named(tmp_path):
    write(tmp_path / "a.png", noise(0, 30, 20))
    with pytest.raises(ValueError, match="a.png has 30x20 pixels; the published images have 20x30"):
        decoded(tmp_path, Shape(8, exact=(20, 30)))


def test_rows_come_in_the_order_they_are_asked_for(tmp_path):
    for number in range(40):
        write(tmp_path / f"{number:02d}.png", np.full((4, 4, 3), number, np.uint8))
    decoder = Decoder(list_folder(tmp_path, "train"), Shape(4))
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist() + [3, 3]
    assert decoder.rows(rows)[:, 0, 0, 0].tolist() == rows
    assert decoder.rows([]).shape == (0, 3, 4, 4)
