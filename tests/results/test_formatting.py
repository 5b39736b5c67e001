"""An interval is written one way, with or without ends."""

import math

import pytest

from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.results.formatting import brackets, figures, text
from immiscible_policy.results.table import table

WHOLE = Interval(0.5, -0.1, 1.2, "seeds and starts")
BARE = Interval(-0.25, math.nan, math.nan, "nothing")


def test_numbers_signs_and_brackets() -> None:
    assert text(WHOLE) == "0.500 [-0.100, 1.200]" and text(WHOLE, cut=(0.0, 1.0)) == "0.500 [0.000, 1.000]"
    assert text(WHOLE, "+.2f") == "+0.50 [-0.10, +1.20]" and text(WHOLE, ".0%") == "50% [-10%, 120%]"
    assert brackets(WHOLE) == "[-0.100, 1.200]"


def test_missing_ends_and_nothing_at_all() -> None:
    assert text(BARE, "+.3f") == "-0.250" and brackets(BARE) == ""
    assert text(None) == brackets(None) == ""


def test_figures_are_json_values_and_read_like_the_interval() -> None:
    assert figures(WHOLE, cut=(0.0, 1.0)) == {"mean": 0.5, "low": 0.0, "high": 1.0, "over": "seeds and starts"}
    assert figures(BARE) == {"mean": -0.25, "low": None, "high": None, "over": "nothing"}
    assert set(figures(None).values()) == {None}
    for interval in (WHOLE, BARE):
        assert text(figures(interval)) == text(interval)


def test_a_table_has_equal_rows() -> None:
    assert table(["run", "score"], [["a", "0.5"]]) == "| run | score |\n| --- | ---: |\n| a | 0.5 |"
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        table(["run", "score"], [["a"]])
