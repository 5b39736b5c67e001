"""A summary says what its rows say, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.evaluation.statistics import mean_interval
from immiscible_policy.results.summary import summarize
from tests.results.runs import episode, write_run


def rising(seed: int, step: int, start: int) -> float:
    return 0.1 * seed + step / 10_000 + (start - 100) / 100


def test_last10_and_max_are_as_defined(tmp_path: Path) -> None:
    steps = range(500, 6001, 500)
    summary = summarize(write_run(tmp_path / "run", rising, steps=steps))
    by_start = 0.025  # mean of (start - 100) / 100
    assert summary["pooled"]["coverage"]["last10"]["mean"] == pytest.approx(0.1 + 0.375 + by_start)
    assert summary["pooled"]["coverage"]["max"]["mean"] == pytest.approx(0.1 + 0.6 + by_start)
    assert summary["seeds"]["2"]["coverage"]["last10"]["mean"] == pytest.approx(0.2 + 0.375 + by_start)
    assert summary["seeds"]["2"]["coverage"]["max"]["checkpoint"] == [6000]
    assert summary["last10_checkpoints"] == {"0": 10, "1": 10, "2": 10}
    assert summary["checkpoints"]["0"] == list(steps) and summary["starts"] == list(range(100, 106))


def test_every_metric_has_its_own_reading(tmp_path: Path) -> None:
    coverage = {0: 0.2, 1: 0.95, 2: 0.97}
    run = write_run(tmp_path / "run", lambda seed, *_: coverage[seed], steps=[500])
    pooled = summarize(run)["pooled"]
    values = np.array(list(coverage.values()))
    assert list(pooled) == ["coverage", "final_coverage", "reward", "success"]
    assert pooled["coverage"]["max"]["mean"] == pytest.approx(values.mean())
    assert pooled["reward"]["max"]["mean"] == pytest.approx(np.minimum(1, values / 0.95).mean())
    assert pooled["success"]["max"]["mean"] == pytest.approx(1 / 3)
    assert pooled["final_coverage"]["max"]["mean"] == pytest.approx(values.mean() / 2)


def test_each_seed_has_its_own_best_checkpoint(tmp_path: Path) -> None:
    best = {0: 500, 1: 1500, 2: 1000}
    run = write_run(tmp_path / "run", lambda seed, step, start: 0.9 if step == best[seed] else 0.3)
    summary = summarize(run)
    assert summary["pooled"]["coverage"]["max"]["checkpoint"] == [500, 1500, 1000]
    assert summary["pooled"]["coverage"]["max"]["mean"] == pytest.approx(0.9)
    assert summary["pooled"]["coverage"]["last10"]["mean"] == pytest.approx(0.5)
    assert summary["last10_checkpoints"]["0"] == 3


def test_intervals_are_those_of_the_scores_cut_to_what_is_possible(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = {seed: rng.random(6) / 2 for seed in range(3)}
    run = write_run(tmp_path / "run", lambda seed, _, start: table[seed][start - 100], steps=[500])
    result = summarize(run)["pooled"]["coverage"]["last10"]
    expected = mean_interval(np.stack(list(table.values())))
    assert result["low"] == pytest.approx(max(0, expected.low)) and result["high"] == pytest.approx(expected.high)
    assert result["over"] == "seeds and starts"
    far = write_run(tmp_path / "far", lambda seed, *_: [0.0, 0.5, 1.0][seed], steps=[500])
    cut = summarize(far)["pooled"]["coverage"]["last10"]
    assert (cut["low"], cut["high"]) == (0.0, 1.0)


def test_one_seed_is_labelled_as_conditional(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rising, seeds=[4])
    summary = summarize(run)
    assert summary["pooled"]["coverage"]["last10"]["over"] == "starts"
    assert summary["pooled"] == summary["seeds"]["4"]
    assert "Pooled: for new starts, conditional on these runs" in (run.path / "summary.md").read_text()


def test_files_say_what_is_returned_and_depend_on_the_rows_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rising)
    summary = summarize(run)
    first = (run.path / "summary.json").read_bytes()
    assert json.loads(first) == summary
    summarize(run)
    assert (run.path / "summary.json").read_bytes() == first
    text = (run.path / "summary.md").read_text()
    assert "3 training seeds (0, 1, 2), 6 starts" in text
    assert f"| pooled, last 3 | {summary['pooled']['coverage']['last10']['mean']:.3f} [" in text
    assert sorted(path.name for path in run.path.glob("summary*")) == ["summary.json", "summary.md"]


def test_an_unfinished_seed_is_named_first_and_not_pooled(tmp_path: Path) -> None:
    plan = {"seed": "0..3", "eval_every": 500}
    run = write_run(tmp_path / "run", lambda seed, *_: [0.2, 0.4][seed], seeds=[0, 1], **plan)
    run.seed(2).append_episodes(episode(2, 500, start, 0.9) for start in range(100, 106))
    summary = summarize(run)
    assert summary["unfinished"] == {"2": 500, "3": 0} and summary["pooled"]["coverage"]["last10"]["mean"] == 0.3
    assert summary["seeds"]["2"]["coverage"]["last10"]["mean"] == 0.9
    first = "**Unfinished: seed 2 (at step 500), seed 3 (not evaluated); pooled: seed 0, 1.**"
    assert (run.path / "summary.md").read_text().splitlines()[2] == first


def test_of_a_run_without_finished_seeds_all_are_pooled_and_it_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, lambda *_: 0.2, seeds=[0], steps=[500])
    (run.path / "config.yaml").write_text("task: {name: pusht}\nseed: '0'\nsteps: 1000\neval_every: 500\n")
    assert summarize(run)["pooled"]["coverage"]["last10"]["mean"] == pytest.approx(0.2)
    first = "**Unfinished: seed 0 (at step 500); no seed is finished, all are pooled as far as they are.**"
    assert (run.path / "summary.md").read_text().splitlines()[2] == first


def test_fresh_starts_show_how_much_too_high_the_best_checkpoint_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lambda seed, step, start: 0.9 if step == 1000 else 0.5)
    for seed in range(3):
        run.seed(seed).append_fresh(episode(seed, 1000, start, 0.7) for start in range(900, 910))
    summary = summarize(run)
    assert summary["pooled"]["coverage"]["max_fresh"]["mean"] == pytest.approx(0.7)
    assert summary["seeds"]["1"]["reward"]["max_fresh"]["mean"] == pytest.approx(0.7 / 0.95)
    assert "| pooled, max_fresh | 0.700" in (run.path / "summary.md").read_text()
    (run.path / "seed_2" / "fresh.csv").unlink()
    assert "max_fresh" not in summarize(run)["pooled"]["coverage"]
    run.seed(2).append_fresh([episode(2, 500, 900, 0.7)])  # not the best checkpoint
    assert "max_fresh" not in summarize(run)["seeds"]["2"]["coverage"]
