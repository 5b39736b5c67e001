"""The page of measured images says what the text says, and needs nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from immiscible_policy.image.evaluation.curves import make_curve
from immiscible_policy.image.evaluation.measure import Reference
from immiscible_policy.image.evaluation.report import ImageResults, markdown, page, sentences
from immiscible_policy.image.evaluation.rows import ImageRow
from tests.results.test_report import ORIGIN, Page, text

SETTING = (1000, "digits", "abc", 16, "none", "cifar10", "test", "dead", 900, 16, "best", 0, *["none"] * 4)


def rows(scale: float) -> list[ImageRow]:
    """Distances that fall with the steps, of three seeds."""
    rng = np.random.default_rng(0)
    return [
        ImageRow(step, seed, scale * 100 / step + 0.01 * rng.random(), None, *SETTING)
        for seed in range(3)
        for step in (100, 200, 400)
    ]


@pytest.fixture
def results() -> ImageResults:
    """A run and another that reaches its best at half the steps."""
    runs = {"vanilla": rows(1.0), "<knn>": rows(0.49)}
    return ImageResults("Fréchet distance", runs, Reference(None, 900, 0.1, 12.0), {"vanilla": {"commit": "abc1234"}})


def test_the_page_says_what_the_text_says(results: ImageResults) -> None:
    html = page(results, ORIGIN)
    shown, written = text(html), markdown(results)
    assert sentences(results) and all(line in shown and line in written for line in sentences(results))
    assert "geometric mean over seeds) 2.00; the same in every seed, so no interval" in shown and "abc1234" in shown
    assert "It gets as good as vanilla ever was in 3 of 3 seeds." in shown
    assert "As many real images: 0.100." in shown
    outcome = Page(html)
    assert outcome.open == [] and "<knn>" not in html and len(outcome.by_role("tab")) == 3
    assert all("http" not in str(value) for _, attributes in outcome.elements for value in attributes.values())


def test_clip_scores_are_compared_by_seed(results: ImageResults) -> None:
    """Scores of the first run are 30, 31, 32, and those of the other 1, 2 and 3 above: 2 +- t(2) / sqrt(3)."""
    assert results.clip_difference("<knn>") is None and "CLIPScore, difference" not in markdown(results)
    scored = {
        label: [replace(row, clip_score=30.0 + row.seed + place * (1 + row.seed)) for row in of_run]
        for place, (label, of_run) in enumerate(results.rows.items())
    }
    compared = replace(results, rows=scored)
    found, half = compared.clip_difference("<knn>"), stats.t.ppf(0.975, 2) / 3**0.5
    assert found is not None and found.estimate == pytest.approx(2)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]" in markdown(compared)


def test_the_page_shows_distances_against_network_calls_where_they_are_given(results: ImageResults) -> None:
    calls = {label: make_curve(label, {0: {1: 9.0, 10: 4.0}, 1: {1: 8.0, 10: 3.0}}) for label in results.rows}
    shown = text(page(results, ORIGIN, calls=calls))
    assert "against network calls" in shown and "against network calls" not in text(page(results, ORIGIN))
    assert "with the most network calls: vanilla: 3.500 [" in page(results, ORIGIN, calls=calls)


def test_one_run_alone_has_a_page(results: ImageResults) -> None:
    alone = ImageResults(results.title, {"vanilla": rows(1.0)}, results.reference, {})
    assert "Fréchet distance at the last checkpoint: vanilla: 0.2" in text(page(alone, ORIGIN))
