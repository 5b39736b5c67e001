"""Rows survive crashes, resumes and rereading, to the last bit."""

from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.store.rows import EpisodeRow, append_rows, complete, drop_rows, read_rows
from immiscible_policy.tasks import Metric
from immiscible_policy.tasks.pusht import PushT
from tests.results.runs import episode

METRICS = PushT.metrics
HEADER = "checkpoint,start,seed,success,max_coverage,final_coverage,max_reward,steps"


def row(checkpoint: int = 500, start: int = 100000, coverage: float = 0.5, seed: int = 0) -> EpisodeRow:
    return episode(seed, checkpoint, start, coverage)


def test_rows_come_back_bit_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [row(step, start, float(rng.random())) for step in (500, 1000) for start in range(20)]
    append_rows(tmp_path / "episodes.csv", rows[:20], METRICS)
    append_rows(tmp_path / "episodes.csv", rows[20:], METRICS)
    assert read_rows(tmp_path / "episodes.csv", METRICS) == rows
    assert (tmp_path / "episodes.csv").read_text().split("\n")[0] == HEADER


def test_numpy_scalars_are_written_as_plain_numbers(tmp_path: Path) -> None:
    metrics = {"coverage": np.float64(0.1), "final_coverage": np.float64(0.1), "reward": 1, "success": np.bool_(True)}
    append_rows(tmp_path / "episodes.csv", [EpisodeRow(np.int64(5), np.int64(1), 0, metrics, np.int64(3))], METRICS)
    assert (tmp_path / "episodes.csv").read_text().split("\n")[1] == "5,1,0,1,0.1,0.1,1.0,3"
    assert read_rows(tmp_path / "episodes.csv", METRICS) == [EpisodeRow(5, 1, 0, metrics, 3)]


def test_another_tasks_rows_have_its_columns_and_its_ranges(tmp_path: Path) -> None:
    metrics = (Metric("return", "return", "sum", len, low=-5.0, high=float("inf")), Metric("fell", "fell", "any", len))
    rows = [EpisodeRow(1, 2, 3, {"return": 812.5, "fell": 1.0}, 9)]
    append_rows(tmp_path / "episodes.csv", rows, metrics)
    assert (tmp_path / "episodes.csv").read_text() == "checkpoint,start,seed,fell,return,steps\n1,2,3,1,812.5,9\n"
    assert read_rows(tmp_path / "episodes.csv", metrics) == rows
    with pytest.raises(ValueError, match=r"return=-5.5 is outside \[-5.0, inf\]"):
        append_rows(tmp_path / "new.csv", [EpisodeRow(1, 2, 3, {"return": -5.5, "fell": 0.0}, 9)], metrics)
    assert not (tmp_path / "new.csv").exists()
    with pytest.raises(ValueError, match="no file of episodes"):
        read_rows(tmp_path / "episodes.csv", METRICS)


def test_a_file_cut_anywhere_keeps_every_whole_row_and_takes_new_ones(tmp_path: Path) -> None:
    path, rows = tmp_path / "episodes.csv", [row(start=start, coverage=1 / (3 + start)) for start in range(3)]
    append_rows(path, rows, METRICS)
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = max(0, content[:cut].count(b"\n") - 1)
        assert read_rows(path, METRICS) == rows[:whole]
        append_rows(path, rows[whole:], METRICS)
        assert path.read_bytes() == content


def test_an_episode_that_is_evaluated_again_has_one_row(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    append_rows(path, [row(start=1, coverage=0.1), row(start=2, coverage=0.2), row(600, 1)], METRICS)
    append_rows(path, [row(start=1, coverage=0.7)], METRICS)
    kept = [row(start=2, coverage=0.2), row(600, 1), row(start=1, coverage=0.7)]
    assert read_rows(path, METRICS) == kept and path.read_text().count("\n") == 4
    drop_rows(path, 500, METRICS)
    assert read_rows(path, METRICS) == [kept[0], kept[2]] and path.read_text().count("\n") == 3
    path.write_text(path.read_text() + path.read_text().split("\n")[1] + "\n")
    with pytest.raises(ValueError, match="episodes.csv, line 4 repeats an episode"):
        read_rows(path, METRICS)


def test_rows_of_another_seed_are_refused(tmp_path: Path) -> None:
    append_rows(tmp_path / "episodes.csv", [row(seed=0), row(600, seed=7)], METRICS)
    with pytest.raises(ValueError, match="episodes.csv, line 3 is of seed 7, the file of seed 0; remove that line"):
        read_rows(tmp_path / "episodes.csv", METRICS, seed=0)


@pytest.mark.parametrize(
    "line",
    ["500,1,0,1,0.5", "500,1,0,maybe,0.5,0.5,0.5,3", "500,1,0,1,nan,0.5,0.5,3", "500,1,0,1,1.5,0.5,0.5,3",
     "500,1,0,0.5,0.5,0.5,0.5,3", "-500,1,0,1,0.5,0.5,0.5,3", "500,1,0,1,0.5,0.5,0.5,-3", "5_00,1,0,1,0.5,0.5,0.5,3",
     "500,1,0,1,0.5,0.5,\N{ARABIC-INDIC DIGIT ZERO},3", f"{'9' * 5000},1,0,1,0.5,0.5,0.5,3"],
)  # fmt: skip
def test_a_damaged_whole_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(ValueError, match="episodes.csv, line 2 is damaged"):
        read_rows(path, METRICS)


def test_another_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    path.write_text("epoch,loss\n1,2\n")
    for use in (lambda: read_rows(path, METRICS), lambda: append_rows(path, [row()], METRICS)):
        with pytest.raises(ValueError, match="no file of episodes"):
            use()
    assert path.read_text() == "epoch,loss\n1,2\n"


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(ValueError, match="coverage=.* at checkpoint 500, start 100000"):
        row(coverage=score)


def test_a_checkpoint_is_complete_that_has_the_usual_starts() -> None:
    whole = [row(step, start) for step in (500, 1000) for start in (7, 8)]
    cut_short, more = [row(1500, 7)], [row(2000, start) for start in (7, 8, 9)]
    starts, tables = complete({0: [*more, *whole, *cut_short], 1: [row(500, 7, seed=1)]})
    assert starts == [7, 8]
    assert {seed: list(table) for seed, table in tables.items()} == {0: [500, 1000, 2000]}
    assert complete({}) == ([], {})
