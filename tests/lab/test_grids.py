"""One arm in many settings: two grids written by hand, and the committed ones."""

import json
from pathlib import Path

import pytest

from immiscible_policy.lab import grids as grids_program

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def interval(mean, half=0.1):
    return {"mean": mean, "low": mean - half, "high": mean + half, "over": "seeds"}


def arm(last10, last, difference=None, missing=()):
    result = {"missing_seeds": list(missing), "steps": 9, "seeds": {"0": {}, "1": {}}}
    result["scores"] = {"coverage": {"last10": interval(last10), "last": interval(last)}}
    if difference is not None:
        result["difference"] = {"coverage": {"last10": interval(difference[0]), "last": interval(difference[1])}}
    return result


def write(path, command, arms):
    path.write_text(json.dumps({"command": command, "commit": "c0ffee", "arms": arms, "compared_with": "vanilla"}))
    return path


@pytest.fixture
def grids(tmp_path):
    command = "python train_policy.py experiment=when data=a.zarr out=when arms=vanilla,knn_k2"
    few = command + " train_episodes=25 checkpoint_every=5 steps=9"
    whole = {"vanilla": arm(0.5, 0.6), "knn_k2": arm(0.3, 0.55, (-0.2, -0.05)), "c2ot": arm(0.7, 0.9, (0.2, 0.3))}
    better = {"vanilla": arm(0.2, 0.3), "knn_k2": arm(0.4, 0.45, (0.2, 0.15)), "c2ot": {"missing_seeds": [0]}}
    return [write(tmp_path / "a.json", command, whole), write(tmp_path / "b.json", few, better)]


def measure(grids, arm="knn_k2"):
    return grids_program.measure({"files": ",".join(map(str, grids)), "arm": arm})


def test_settings_are_named_by_their_words_and_counted_by_their_intervals(grids):
    result = measure(grids)
    assert list(result.figures["settings"]) == ["when", "when train_episodes=25 steps=9"]
    assert result.figures["settings"]["when"]["difference"]["last10"] == interval(-0.2)
    assert result.figures["settings"]["when"]["data"] == "a.zarr"
    assert "- last10: better in 1 of 2 settings, worse in 1." in result.text
    assert "- last: better in 1 of 2 settings, worse in 0." in result.text
    row = next(line for line in result.text.splitlines() if line.startswith("| when |"))
    assert row == "| when | a.zarr | 9 | 2 | 0.600 | 0.550 | -0.200 [-0.300, -0.100] | -0.050 [-0.150, +0.050] |"


def test_another_arm_is_read_as_well(grids):
    assert measure(grids[:1], "c2ot").figures["settings"]["when"]["difference"]["last"] == interval(0.3)


def test_what_is_no_setting_is_refused(grids, tmp_path):
    with pytest.raises(ValueError, match="b.json: no arm c2ot that was trained to its end; there are vanilla, knn_k2"):
        measure(grids, "c2ot")
    with pytest.raises(ValueError, match="two are of the setting 'when'"):
        measure([grids[0], grids[0]])
    with pytest.raises(ValueError, match="arm=vanilla is what the others are compared with"):
        measure(grids, "vanilla")
    (tmp_path / "e.json").write_text(grids[0].read_text().replace('"low": 0.4,', '"low": null,'))
    with pytest.raises(ValueError, match="e.json: one seed and one start have no interval"):
        measure([tmp_path / "e.json"])
    for content in ("{}", "[1]", "no JSON", grids[0].read_text().replace("experiment=when", "")):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match="c.json: no grid's JSON file; experiment=when writes when.json"):
            measure([tmp_path / "c.json"])
    with pytest.raises(ValueError, match="d.json: no grid's JSON file: No such file"):
        measure([tmp_path / "d.json"])


def test_committed_grids_are_read_with_the_figures_they_hold():
    result = measure([RESULTS / "when" / "when.json", RESULTS / "table2" / "table2.json"]).figures["settings"]
    assert list(result) == ["when", "table2"]
    for name, file in (("when", "when/when.json"), ("table2", "table2/table2.json")):
        arms = json.loads((RESULTS / file).read_text())["arms"]
        assert result[name]["difference"]["last"] == arms["knn_k2"]["difference"]["coverage"]["last"]
        assert result[name]["first"]["last10"] == arms["vanilla"]["scores"]["coverage"]["last10"]
