"""Colours mean the same everywhere, and can be told apart by every reader on every page."""

from itertools import combinations

import numpy as np
import pytest

from immiscible_policy.noise.registry import SELECTORS
from immiscible_policy.palette import COLOURS, DARK, GREY, INK, NAMED, colours, panels

MACHADO = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""


def linear(colour: str) -> np.ndarray:
    """A hexadecimal colour as linear RGB."""
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast_ratio(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return float((high + 0.05) / (low + 0.05))


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB as Oklab (Ottosson 2020), in which distances are as seen."""
    lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.21190350, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.62997870],
    ]
    lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.97799850, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.array(lab) @ np.cbrt(np.array(lms) @ rgb.clip(0, 1))


def test_the_measures_are_those_of_the_standards():
    assert contrast_ratio("#000000", "#ffffff") == pytest.approx(21)
    assert oklab(np.ones(3)) == pytest.approx([1, 0, 0], abs=1e-4)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_stands_out_on_white_and_on_dark(colour):
    assert contrast_ratio(colour, "#ffffff") >= 3 and contrast_ratio(colour, DARK) >= 3


@pytest.mark.parametrize("sight", MACHADO)
def test_colours_can_be_told_apart(sight):
    """Okabe and Ito's seven colours are 0.076 apart at least, in the same measure."""
    seen = [oklab(np.array(MACHADO[sight]) @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.076


def test_text_can_be_read():
    assert contrast_ratio(INK, "#ffffff") >= 7 and contrast_ratio(GREY, "#ffffff") >= 4.5


def test_every_selector_has_a_colour_of_its_own():
    assert len({NAMED[name] for name in SELECTORS}) == len(SELECTORS)


def test_a_selector_keeps_its_colour_in_any_company():
    assert colours(["vanilla", "knn"])["knn"] == colours(["linear", "my own", "knn_k4"])["knn_k4"] == NAMED["knn"]
    assert colours(["monday"], {"monday": "knn"}) == {"monday": NAMED["knn"]}


def test_what_all_labels_name_counts_last():
    """Three arms of one model have their selectors' colours; two models have their own."""
    given = colours(["flow_vanilla", "flow_knn_k4", "flow_linear"])
    assert list(given.values()) == [NAMED["vanilla"], NAMED["knn"], NAMED["linear"]]
    assert list(colours(["flow_knn", "ddim_knn"]).values()) == [NAMED["flow"], NAMED["ddim"]]
    assert (
        list(colours(["flow", "flow_large"]).values())[0] == NAMED["flow"] == colours(["flow_vanilla"])["flow_vanilla"]
    )


def test_labels_of_one_selector_and_strangers_take_free_colours():
    given = colours(["knn_k2", "knn_k4", "other", "vanilla", "linear"])
    assert len(set(given.values())) == 5
    assert (given["knn_k2"], given["vanilla"], given["linear"]) == (NAMED["knn"], NAMED["vanilla"], NAMED["linear"])
    assert list(given) == ["knn_k2", "knn_k4", "other", "vanilla", "linear"]


def test_more_labels_than_colours_are_refused():
    assert len(set(colours(map(str, range(8))).values())) == 8
    with pytest.raises(ValueError, match="9 runs are too many"):
        colours(map(str, range(9)))


def test_panels_share_one_look():
    figure, axes = panels(2, 2, title="counts")
    assert len(axes) == 4 and figure.get_suptitle() == "counts"
    assert not any(panel.spines["top"].get_visible() for panel in axes)
