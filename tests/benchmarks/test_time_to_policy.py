"""Time to a policy: what is read from a training, and how two trainings compare."""

import json

import pytest

from benchmarks.time_to_policy import describe, own_curve, summed, times_as_long

RECIPE = {"method": "flow", "sampling_steps": 5, "spacing": "shifted", "steps": 40, "batch_size": 8}


def curve(*points):
    return [dict(zip(("step", "seconds", "coverage"), point, strict=True)) for point in points]


def test_only_the_seconds_of_training_count(tmp_path):
    rows = [
        {"step": 5, "seconds": 1.5, "loss": 1.0}, {"step": 10, "seconds": 2.0, "loss": 0.5},
        {"step": 10, "coverage": 0.4, "episodes": 50}, {"step": 15, "seconds": 1.0, "loss": 0.4},
        {"step": 15, "coverage": 0.7, "episodes": 50},
    ]  # fmt: skip
    (tmp_path / "seed_3").mkdir()
    (tmp_path / "seed_3" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert own_curve(tmp_path, 3) == curve((10, 3.5, 0.4), (15, 4.5, 0.7))


def test_the_first_evaluation_that_passes_a_level_counts():
    result = summed(curve((10, 2.0, 0.5), (20, 4.0, 0.85), (30, 6.0, 0.75), (40, 8.0, 0.9)))
    assert result["until"] == {"0.8": 4.0, "0.9": 8.0}
    assert (result["step"], result["coverage"]) == (40, 0.9) and result["ms_per_step"] == pytest.approx(200)
    assert summed(curve((10, 2.0, 0.5)))["until"] == {"0.8": None, "0.9": None}


def test_seconds_compare_and_a_training_that_never_arrived_gives_a_bound():
    ours = {0: summed(curve((40, 10.0, 0.95))), 1: summed(curve((40, 10.0, 0.85)))}
    theirs = {0: summed(curve((9, 30.0, 0.82), (90, 70.0, 0.85))), 1: summed(curve((9, 80.0, 0.91)))}
    arms = {"ours": ours, "LeRobot": theirs}
    ratios = times_as_long(arms, "ours")
    assert ratios["0.8"] == {"0": {"ratio": 3.0, "at_least": False}, "1": {"ratio": 8.0, "at_least": False}}
    assert ratios["0.9"] == {"0": {"ratio": 7.0, "at_least": True}, "1": {"ratio": None, "at_least": False}}
    text = describe({"recipe": RECIPE, "starts": 50, "limit": 60, "arms": arms, "times_as_long": {"ours": ratios}})
    assert "until 0.9 over those of ours: seed 0: at least 7." in text
    assert "until 0.8 over those of ours: seed 0: 3, seed 1: 8." in text
    slower = times_as_long({"ours": theirs, "LeRobot": ours}, "ours")
    assert slower["0.8"]["0"] == {"ratio": pytest.approx(1 / 3), "at_least": False}
