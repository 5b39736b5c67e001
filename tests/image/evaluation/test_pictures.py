"""Pictures: where images lie on a sheet, and that figures show what they are given."""

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_policy.image.evaluation.curves import Reached, make_curve
from immiscible_policy.image.evaluation.pictures import curves_figure, samples_figure, save_tiles, tile


def test_tiles_lie_row_by_row_one_white_pixel_apart():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    result = tile(images, 2)
    assert result.shape == (5, 5, 3)
    assert result[..., 0].tolist() == [
        [0, 0, 255, 1, 1],
        [0, 0, 255, 1, 1],
        [255] * 5,
        [2, 2, 255, 255, 255],
        [2, 2, 255, 255, 255],
    ]


def test_small_images_are_enlarged_by_repeating_pixels(tmp_path):
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    save_tiles(tmp_path / "new" / "sheet.png", image)
    shown = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert shown.shape == (64, 64, 3)
    np.testing.assert_array_equal(shown[::4, :64:4], image[0].permute(1, 2, 0))


def test_a_figure_draws_every_run_with_its_seeds_and_says_how_many_get_as_good():
    curves = {name: make_curve(name, {0: {10: 5.0, 20: 3.0}, 1: {10: 6.0, 20: 4.0}}) for name in ("vanilla", "knn")}
    reached = {"knn": [Reached(0, 3.0, 20, 10, True), Reached(1, 4.0, 10, 20, False)]}
    left, right = curves_figure(curves, reached, title="distance", floor=1.0).axes
    names = [text.get_text() for text in left.get_legend().get_texts()]
    assert names == ["vanilla", "KNN", "real images", "best mean of vanilla"]
    means = [line.get_ydata().tolist() for line in left.lines if line.get_label() == "KNN"]
    assert means == [[5.5, 3.5]]
    assert [text.get_text() for text in right.texts] == ["1 of 2 seeds get as good"]
    assert right.lines[0].get_ydata().tolist() == [2.0, 0.5]
    assert len(curves_figure(curves, {}, title="distance", floor=None).axes) == 1
    with pytest.raises(ValueError, match="9 runs are too many"):
        curves_figure({str(n): curves["knn"] for n in range(9)}, {}, title="", floor=None)


def test_edits_stand_in_columns_with_their_names():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    figure = samples_figure({"original": images, "masked": images + 1, "knn": images + 2}, "in-painting")
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["original", "masked", "knn"]
    assert figure.axes[5].images[0].get_array().max() == 2
