"""What selection gains by setting: two files written by hand."""

import json

import pytest

from immiscible_policy.lab import dial


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def write(path, obs, r2, gains):
    """A file of `lab solvers` in which vanilla scores 0.2 with one call and 0.1 with two, others by so much more."""
    runs = {"vanilla": {"euler1": {"score": interval(0.2)}, "euler2": {"score": interval(0.1)}}}
    for arm, (one, two) in gains.items():
        runs[arm] = {"euler1": {"from_run": interval(one)}, "euler2": {"from_run": interval(two)}}
    figures = {"task": "pusht", "obs": obs, "r2": r2, "compared_with": "vanilla", "runs": runs}
    path.write_text(json.dumps({"commit": "c0ffee", "figures": figures}))
    return path


@pytest.fixture
def files(tmp_path):
    much = write(tmp_path / "much.json", "keypoints", 0.9, {"knn": (0.0, 0.02), "linear": (0.1, 0.2)})
    nothing = write(tmp_path / "nothing.json", "nothing", 0.0, {"linear": (-0.1, 0.0)})
    return [much, nothing]


def measure(files):
    return dial.measure({"files": ",".join(map(str, files))})


def test_differences_are_percent_of_the_first_run_with_as_many_calls(files):
    result = measure(files)
    low, high = result.figures["settings"]
    assert (low["obs"], high["obs"]) == ("nothing", "keypoints"), "in the order of R^2"
    assert low["differences"]["euler1"]["linear"] == pytest.approx({"mean": -50, "low": -55, "high": -45})
    assert high["differences"]["euler2"]["knn"] == pytest.approx({"mean": 20, "low": 10, "high": 30})
    rows = [line for line in result.text.splitlines() if line.startswith("| linear | euler1")]
    assert rows == ["| linear | euler1 | -50.0 [-55.0, -45.0] | +50.0 [+45.0, +55.0] |"]


def test_an_arm_that_a_setting_lacks_leaves_its_cell_empty(files):
    text = measure(files).text
    assert "| knn | euler1 |  | +0.0 [-5.0, +5.0] |" in text
    assert "pusht obs=nothing (R^2 0.00) | pusht obs=keypoints (R^2 0.90)" in text


def test_what_holds_no_setting_is_refused_in_one_line(files, tmp_path):
    (tmp_path / "a.json").write_text(files[0].read_text().replace('"r2"', '"r3"'))
    with pytest.raises(ValueError, match="a.json: no file of `lab solvers on=held_out`"):
        measure([tmp_path / "a.json"])
    with pytest.raises(ValueError, match="No such file"):
        measure([tmp_path / "absent.json"])
    (tmp_path / "b.json").write_text(files[0].read_text().replace("0.9,", "null,"))
    with pytest.raises(ValueError, match="needs actions that vary"):
        measure([tmp_path / "b.json"])
    (tmp_path / "c.json").write_text(files[0].read_text().replace("euler", "heun"))
    with pytest.raises(ValueError, match="no solver is in all of them"):
        measure([files[1], tmp_path / "c.json"])
