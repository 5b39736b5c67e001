"""A report speaks of the task's metrics in the task's own words, whatever the task."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from immiscible_policy.results.report.evidence import gather
from immiscible_policy.results.report.page import render
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import RunDirectory, label_runs
from immiscible_policy.tasks import Metric, Task
from tests.results.test_report import ORIGIN, Page, text


class Reach(Task):
    """Reach a point: scored by the return, which has no bounds, and by whether it was reached."""

    name = "reach"
    title = "Reach"
    about = "Reach a point. Return: the sum of rewards, at most 0."
    measured = "return"
    max_steps = 50
    observations = ("state",)
    metrics = (
        Metric("return", "sum_reward", "sum", lambda reward, info: reward, -np.inf, 0.0),
        Metric("reached", "reached", "any", lambda reward, info: info["reached"]),
    )


def write_run(directory: Path, noise: str, shift: float) -> RunDirectory:
    """A run of the task with returns of about shift - 20."""
    run, rng = RunDirectory(directory), np.random.default_rng(0)
    run.begin(yaml.safe_dump({"task": {"name": f"{__name__}:Reach"}, "noise": {"name": noise}}), {})
    for seed in range(3):
        rows = [
            EpisodeRow(step, start, seed, {"return": shift - 20 + rng.normal(), "reached": float(start % 2)}, 50)
            for step in (10, 20)
            for start in range(6)
        ]
        run.seed(seed).append_episodes(rows)
    return run


@pytest.fixture
def shown(tmp_path: Path) -> str:
    """The page's text."""
    runs = [write_run(tmp_path / "vanilla", "vanilla", 0.0), write_run(tmp_path / "knn", "knn", 5.0)]
    return render(
        gather(label_runs(runs), "vanilla"), ORIGIN, videos=1
    )  # the task has no renderer: no videos, and no failure


def test_the_verdict_is_about_the_primary_metric(shown: str) -> None:
    assert "knn is better than vanilla: mean return -1" in text(shown)
    assert "Reach a point. Return: the sum of rewards, at most 0." in text(shown)
    assert "Reach report" in "".join(Page(shown).text["title"])


def test_every_metric_is_drawn_and_none_of_another_task(shown: str) -> None:
    titles = [drawing["aria-label"].partition(". ")[0] for drawing in Page(shown).by_role("img")]
    assert titles[:3] == ["return (sum over the episode)", "return (sum over the episode)", "reached rate"]
    assert "PushT" not in shown and "goal" not in text(shown)
    assert not Page(shown).all("video") and "the task has no renderer" in text(shown)


def test_runs_of_two_tasks_are_not_compared(tmp_path: Path) -> None:
    reach = write_run(tmp_path / "knn", "knn", 0.0)
    other = RunDirectory(tmp_path / "pusht")
    other.begin("task: {name: pusht}\nnoise: {name: vanilla}\n", {})
    metrics = {"coverage": 0.5, "final_coverage": 0.5, "reward": 0.5, "success": 0.0}
    other.seed(0).append_episodes([EpisodeRow(10, 100, 0, metrics, 300)])
    with pytest.raises(ValueError, match="knn is of task reach, pusht of task pusht; report them apart"):
        gather(label_runs([other, reach]), "pusht")
