"""A grid's comparisons are corrected for their number, and said in words."""

import math

import pytest
from scipy import stats

from immiscible_policy.image.evaluation.panels import Panel, corrected, spoken, verdict

FIRST = {0: 5.0, 1: 5.5, 2: 6.0, 3: 5.2}


def panel(title: str, shifts: dict[str, dict[int, list[float]]]) -> Panel:
    """Runs that lie so far from the first, by number of calls and seed."""
    counts = next(iter(shifts.values()))
    calls = {"vanilla": {seed: dict.fromkeys(counts, value) for seed, value in FIRST.items()}}
    for label, by_count in shifts.items():
        calls[label] = {
            seed: {count: value + by[seed] for count, by in by_count.items()} for seed, value in FIRST.items()
        }
    return Panel(title, None, calls, {})


def test_p_is_that_of_a_paired_t_test_and_corrected_for_all_panels():
    clear, unclear = [-1.0, -1.1, -0.9, -1.05], [0.4, -0.3, 0.2, -0.1]
    panels = [panel("flow", {"knn": {1: clear, 2: unclear}}), panel("ddim", {"linear": {1: unclear, 2: unclear}})]
    p = corrected(panels)
    alone = stats.ttest_1samp(clear, 0).pvalue
    assert len(p) == 4 and p["flow", "knn", 1] == pytest.approx(4 * alone) and alone < 0.001
    assert p["flow", "knn", 2] == 1.0
    assert panels[0].p_values("knn")[1] == pytest.approx(alone)
    text = "\n".join(verdict(p))
    assert "Holm's correction for all 4 comparisons" in text and "- knn, network calls: 1" in text
    assert "linear" not in text


def test_a_panel_is_told_in_words():
    clear, unclear = [-1.0, -1.1, -0.9, -1.05], [0.4, -0.3, 0.2, -0.1]
    drawn = panel("flow", {"knn": {1: clear, 2: [1.0, 1.1, 0.9, 1.05], 3: clear, 5: unclear}})
    assert spoken(drawn, corrected([drawn])) == (
        "knn is better with 1, 3 network calls and worse with 2 network calls than vanilla, with others no difference "
        "was detected. Corrected for 4 comparisons (Holm)."
    )
    same = panel("flow", {"knn": {1: unclear}})
    assert spoken(same, corrected([same])).startswith("Between knn and vanilla no difference was detected with any")
    assert spoken(same, {}) == ""


def test_one_seed_has_no_p_and_no_verdict():
    single = panel("flow", {"knn": {1: [-1.0, -1.0, -1.0, -1.0]}})
    single = single._replace(calls={label: {0: seeds[0]} for label, seeds in single.calls.items()})
    assert math.isnan(single.p_values("knn")[1]) and corrected([single]) == {} and verdict({}) == []
