"""Episodes arranged by checkpoint and start, and what is read off them."""

from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.evaluation.scores import (
    best_steps,
    common_steps,
    fresh_scores,
    mean_by_step,
    means,
    scores,
    stacked,
)
from immiscible_policy.tasks import find_task, primary
from tests.results.runs import episode, write_run

COVERAGE = primary(find_task("pusht"))


def rising(seed: int, step: int, start: int) -> float:
    return step / 5000 + seed / 100 + start / 10_000


def test_incomplete_and_extra_evaluations_do_not_change_the_starts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rising)
    run.seed(1).append_episodes(episode(1, 2000, start, 1.0) for start in range(100, 103))  # cut short
    run.seed(1).append_episodes(episode(1, 1500, start, 1.0) for start in range(106, 200))  # more than the others
    result = scores(run.episodes())
    assert result[1].steps == [500, 1000, 1500] and result[1].starts == list(range(100, 106))
    assert result[1].values["coverage"].max() < 0.5


def test_kinds_by_hand(tmp_path: Path) -> None:
    run = write_run(tmp_path, lambda seed, step, start: 0.3 if step == 500 else 0.2, steps=(500, 1000))
    table = scores(run.episodes())
    assert stacked(table, COVERAGE, "last") == pytest.approx(np.full((3, 6), 0.2))
    assert stacked(table, COVERAGE, "max") == pytest.approx(np.full((3, 6), 0.3))
    assert stacked(table, COVERAGE, "last10") == pytest.approx(np.full((3, 6), 0.25))
    assert best_steps(table, COVERAGE) == {0: 500, 1: 500, 2: 500} and common_steps(table) == [500, 1000]


def test_last10_is_of_ten_checkpoints(tmp_path: Path) -> None:
    steps = range(100, 1300, 100)  # twelve
    table = scores(write_run(tmp_path, lambda seed, step, start: step / 2000, steps=steps).episodes())
    assert stacked(table, COVERAGE, "last10").mean() == pytest.approx(np.mean(steps[2:]) / 2000)


def test_fresh_scores_are_of_the_chosen_checkpoint_on_starts_that_all_seeds_share(tmp_path: Path) -> None:
    run = write_run(tmp_path, rising, seeds=(0, 1))
    run.seed(0).append_fresh(episode(0, step, start, 0.5) for step in (500, 1500) for start in (7, 8))
    assert fresh_scores(run, {0: 1500, 1: 1500}, "coverage") == {}
    run.seed(1).append_fresh(episode(1, 1500, start, 0.7) for start in (8, 9))
    result = fresh_scores(run, {0: 1500, 1: 1500}, "coverage")
    assert {start: values.tolist() for start, values in result.items()} == {8: [0.5, 0.7]}
    for seed in (0, 1):
        run.seed(seed).append_fresh([episode(seed, 1500, 100, 0.9)])  # the checkpoint was chosen on start 100
    assert fresh_scores(run, {0: 1500, 1: 1500}, "coverage").keys() == {8}


def test_means_over_episodes() -> None:
    rows = [episode(0, step, start, 0.1 * start) for step in (1, 2) for start in (1, 3)]
    assert means(rows)["coverage"] == pytest.approx(0.2) and means(rows)["final_coverage"] == pytest.approx(0.1)
    assert mean_by_step(rows[:3], "coverage") == pytest.approx({1: 0.2, 2: 0.1}) and mean_by_step([], "coverage") == {}
