"""Summary, comparison and grid read whatever task a run names, here one with an unbounded return, from outside."""

import json
from pathlib import Path

import pytest
import yaml

from immiscible_policy.evaluation.scores import means
from immiscible_policy.results.compare import compare, markdown
from immiscible_policy.results.grid import write_grid
from immiscible_policy.results.summary import summarize
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import RunDirectory

TASK = """
from immiscible_policy.tasks import Metric, Task

class Reach(Task):
    name, title, about, measured = "reach", "Reach", "Reach a point.", "return"
    max_steps, observations = 20, ("state",)
    metrics = (
        Metric("return", "return", "sum", lambda reward, info: reward, low=-400.0, high=float("inf")),
        Metric("fell", "fell", "any", lambda reward, info: info["fell"]),
        Metric("distance", "final_distance", "last", lambda reward, info: info["distance"], summarised=False),
    )
"""


@pytest.fixture
def runs(tmp_path, write_module) -> list[RunDirectory]:
    """Two runs of three seeds; `b` returns 10 more."""
    write_module("lab_reach", TASK)
    return [write(tmp_path / name, gain) for name, gain in (("a", 0.0), ("b", 10.0))]


def write(directory: Path, gain: float) -> RunDirectory:
    run = RunDirectory(directory)
    run.begin(yaml.safe_dump({"task": {"name": "lab_reach:Reach"}, "steps": 20, "eval_every": 10, "seed": "0..2"}), {})
    for seed in range(3):
        for step in (10, 20):
            run.seed(seed).append_episodes(
                EpisodeRow(step, start, seed, {"return": 100 + step + seed + gain, "fell": 0.0, "distance": 0.5}, 20)
                for start in range(4)
            )
    return run


def test_the_file_has_the_tasks_columns(runs):
    lines = (runs[0].seed(0).path / "episodes.csv").read_text().splitlines()
    assert lines[0] == "checkpoint,start,seed,fell,return,final_distance,steps" and lines[1] == "10,0,0,0,110.0,0.5,20"
    assert means(runs[0].seed(0).episodes()) == {"return": 115.0, "fell": 0.0, "distance": 0.5}


def test_the_summary_has_what_the_task_summarises_uncut(runs):
    pooled = summarize(runs[0])["pooled"]
    assert list(pooled) == ["return", "fell"]
    assert pooled["return"]["max"]["mean"] == pytest.approx(121) and pooled["return"]["max"]["high"] > 121
    assert "| pooled, max | 121.000 [" in (runs[0].path / "summary.md").read_text()


def test_the_comparison_is_about_the_primary_metric(runs):
    comparison = compare(runs[1], runs[0])
    assert comparison.headline.name.startswith("return, last ")
    assert comparison.headline.difference.low == pytest.approx(10)
    assert "The result is return, last " in markdown(comparison)


def test_the_grid_is_of_its_metrics(runs, tmp_path):
    text = write_grid(tmp_path, "lab", ["a", "b"], [0, 1, 2])
    arm = json.loads((tmp_path / "lab.json").read_text())["arms"]["b"]
    assert arm["difference"]["return"]["last"]["mean"] == pytest.approx(10) and arm["curve"][0]["return"]["mean"] == 121
    assert "| return | last 2 | last | max |" in text and "distance" not in text
    assert (tmp_path / "lab.png").exists()


def test_runs_of_two_tasks_are_not_compared(runs, tmp_path):
    (runs[1].path / "config.yaml").write_text("task: {name: pusht}\n")
    with pytest.raises(ValueError, match="a is of task=reach and .*b of task=pusht; compare runs of one"):
        compare(*runs)
