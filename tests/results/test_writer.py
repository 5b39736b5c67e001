"""A result is written whole, with its origin, and without numbers that JSON does not have."""

import json
import math
from pathlib import Path

import imageio.v3 as imageio
import pytest

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


@pytest.mark.parametrize(
    ("word", "recorded"),
    [
        ("a=/home/me/runs/knn,/tmp/vanilla/", "a=knn,vanilla/"),
        ("runs=plain=/home/me/a,knn=runs/b", "runs=plain=a,knn=b"),
        ("data=/my dir/of me/x.zarr", "data=x.zarr"),
        ("data=/my dir/lr=1/the x.zarr", "'data=the x.zarr'"),
        ("task=metaworld/a-v3,metaworld/b-v3", "task=metaworld/a-v3,metaworld/b-v3"),
        ("task=gym:ALE/Pong-v5", "task=gym:ALE/Pong-v5"),
        ("url=https://host/a/b.zip", "url=https://host/a/b.zip"),
        ("noise=vanilla,knn", "noise=vanilla,knn"),
        ("benchmarks/step.py", "benchmarks/step.py"),
        ("/home/me/project/train_policy.py", "train_policy.py"),
    ],
)
def test_the_command_is_recorded_without_places(monkeypatch, word, recorded) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "x.py", word, "seed=0..2"])
    assert origin_here()["command"] == f"python x.py {recorded} seed=0..2"


def test_numbers_that_json_lacks_become_null() -> None:
    assert finite({"a": [math.inf, 1.0, (math.nan, "x")]}) == {"a": [None, 1.0, [None, "x"]]}
