"""Rows survive crashes, resumes and rereading, to the last bit."""

import os
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.rows import HEADER, EpisodeRow, append_rows, read_rows, read_run


def row(checkpoint: int = 500, start: int = 100000, max_coverage: float = 0.5, seed: int = 0) -> EpisodeRow:
    return EpisodeRow(
        checkpoint, start, seed, max_coverage > 0.95, max_coverage, max_coverage / 3, max_coverage / 2, 300
    )


def test_rows_come_back_bit_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [row(step, start, float(rng.random())) for step in (500, 1000) for start in range(20)]
    append_rows(tmp_path / "episodes.csv", rows[:20])
    append_rows(tmp_path / "episodes.csv", rows[20:])
    assert read_rows(tmp_path / "episodes.csv") == rows
    assert (tmp_path / "episodes.csv").read_text().split("\n")[0] == HEADER
    assert HEADER == "checkpoint,start,seed,success,max_coverage,final_coverage,max_reward,steps"


def test_numpy_scalars_are_written_as_plain_numbers(tmp_path: Path) -> None:
    written = EpisodeRow(np.int64(5), np.int64(1), 0, np.bool_(True), np.float64(0.1), np.float64(0.1), 1.0, 3)
    append_rows(tmp_path / "episodes.csv", [written])
    assert (tmp_path / "episodes.csv").read_text().split("\n")[1] == "5,1,0,1,0.1,0.1,1.0,3"
    assert read_rows(tmp_path / "episodes.csv") == [EpisodeRow(5, 1, 0, True, 0.1, 0.1, 1.0, 3)]


def test_a_file_cut_anywhere_keeps_every_whole_row_and_takes_new_ones(tmp_path: Path) -> None:
    path, rows = (
        tmp_path / "episodes.csv",
        [row(start=start, max_coverage=1 / (3 + start)) for start in range(3)],
    )
    append_rows(path, rows)
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = max(0, content[:cut].count(b"\n") - 1)
        assert read_rows(path) == rows[:whole]
        append_rows(path, rows[whole:])
        assert path.read_bytes() == content


def test_the_later_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    append_rows(path, [row(start=1, max_coverage=0.1), row(start=2, max_coverage=0.2)])
    append_rows(path, [row(start=1, max_coverage=0.7)])
    assert read_rows(path) == [row(start=1, max_coverage=0.7), row(start=2, max_coverage=0.2)]


@pytest.mark.parametrize("line", ["500,1,0,1,0.5", "500,1,0,maybe,0.5,0.5,0.5,3", "500,1,0,1,nan,0.5,0.5,3"])
def test_a_damaged_whole_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(ValueError, match="episodes.csv, line 2 is damaged"):
        read_rows(path)


def test_another_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    path.write_text("epoch,loss\n1,2\n")
    for use in (lambda: read_rows(path), lambda: append_rows(path, [row()])):
        with pytest.raises(ValueError, match="no file of episodes"):
            use()
    assert path.read_text() == "epoch,loss\n1,2\n"


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(ValueError, match="max_coverage=.* at checkpoint 500, start 100000"):
        row(max_coverage=score)


def test_a_run_is_read_by_seed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("noise: {name: knn, k: 2}\n")
    for seed in (10, 2):
        (tmp_path / f"seed_{seed}").mkdir()
        append_rows(tmp_path / f"seed_{seed}" / "episodes.csv", [row(seed=seed)])
    append_rows(tmp_path / "seed_2" / "fresh.csv", [row(start=7, seed=2)])
    (tmp_path / "seed_3").mkdir()
    run = read_run(tmp_path)
    assert run.config == {"noise": {"name": "knn", "k": 2}}
    assert list(run.seeds) == [2, 10] and run.seeds[10] == [row(seed=10)]
    assert run.fresh == {2: [row(start=7, seed=2)]}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no directory"):
        read_run(tmp_path / "absent")
    (tmp_path / "arm").mkdir()
    with pytest.raises(ValueError, match="has no config.yaml"):
        read_run(tmp_path)
    (tmp_path / "arm" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="it holds the runs arm: give one of them"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="holds no settings; the run is torn"):
        read_run(tmp_path / "arm")
    (tmp_path / "arm" / "config.yaml").write_text("seed: [0]\n")
    with pytest.raises(ValueError, match="no evaluated episodes"):
        read_run(tmp_path / "arm")


def test_an_atomic_write_leaves_the_file_alone_until_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
