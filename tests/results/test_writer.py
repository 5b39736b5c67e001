"""A result is written whole, with its origin, and without numbers that JSON does not have."""

import json
import math
from pathlib import Path

import imageio.v3 as imageio

from immiscible_policy.palette import panels
from immiscible_policy.results.writer import finite, origin_here, write_result


def test_a_result_is_written_with_its_origin(tmp_path: Path) -> None:
    figure, (axes,) = panels(1)
    axes.plot([0, 1])
    files = write_result(tmp_path / "new" / "a.b", {"score": 0.5, "low": math.nan}, "# Text\n\n", figure)
    assert [file.name for file in files] == ["a.b.json", "a.b.md", "a.b.png"]
    record = json.loads(files[0].read_text())
    assert {"command", "commit", "hardware", "versions"} < record.keys()
    assert (record["score"], record["low"]) == (0.5, None)
    assert files[1].read_text() == "# Text\n"
    assert imageio.imread(files[2]).std() > 0


def test_an_origin_from_before_the_measurement_is_kept(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {}, "", origin={"commit": "before"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"commit": "before"}
    assert not (tmp_path / "a.png").exists()


def test_the_command_is_recorded_without_places(monkeypatch) -> None:
    monkeypatch.setattr("sys.orig_argv", "python x.py a=/home/me/runs/knn,/tmp/vanilla task=metaworld/push-v3".split())
    assert origin_here()["command"] == "python x.py a=knn,vanilla task=metaworld/push-v3"


def test_numbers_that_json_lacks_become_null() -> None:
    assert finite({"a": [math.inf, 1.0, (math.nan, "x")]}) == {"a": [None, 1.0, [None, "x"]]}
