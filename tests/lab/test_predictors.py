"""What foretells the end: rank correlations by hand, and a grid written by hand."""

import json

import pytest

from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.lab import predictors
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory
from tests.lab.small import SPEC, small_policy
from tests.results.runs import episode

OPTIONS = {key: option.default for key, option in predictors.OPTIONS.items()} | {"windows": 8, "early": 5}


def arms(figures, ends):
    return {str(i): {"loss": figure, "final": end} for i, (figure, end) in enumerate(zip(figures, ends, strict=True))}


def test_rank_correlation_by_hand():
    ends = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    same = predictors.rank_correlation(arms([1, 2, 4, 8, 16, 32], ends), "loss", 0)
    assert (same["rho"], same["low"], same["high"], same["arms"]) == (pytest.approx(1), *[pytest.approx(1)] * 2, 6)
    turned = predictors.rank_correlation(arms([32, 16, 8, 4, 2, 1], ends), "loss", 0)
    assert turned["rho"] == pytest.approx(-1)
    # One swap of neighbours among six: 1 - 6 * 2 / (6 * 35).
    swapped = predictors.rank_correlation(arms([1, 2, 3, 4, 6, 5], ends), "loss", 0)
    assert swapped["rho"] == pytest.approx(1 - 12 / 210) and swapped["low"] < swapped["rho"]


def test_an_order_needs_four_arms_that_differ():
    assert predictors.rank_correlation(arms([1, None, 2, 3], [0.1, 0.2, 0.3, 0.4]), "loss", 0) == {"arms": 3}
    assert predictors.rank_correlation(arms([7, 7, 7, 7], [0.1, 0.2, 0.3, 0.4]), "loss", 0) == {"arms": 4}


def write_arm(directory, coverage, correlation, summary=True):
    weights = small_policy().state_dict()
    for step in (5, 9):
        metadata = spec_metadata(SPEC) | {"step": step, "seed": 0}
        save_checkpoint(directory / "seed_0" / "checkpoints" / f"step_{step:06d}", metadata, {"ema": weights})
    RunDirectory(directory).begin("task: pusht\nsteps: 9\n", {})
    rows = [episode(0, step, 3, share * coverage) for step, share in ((5, 0.5), (9, 1.0))]
    RunDirectory(directory).seed(0).append_episodes(rows)
    logged = [{"step": 4, "loss": 2.0}, {"step": 5, "noise/correlation": correlation, "noise/prior_shift": 0.1},
              {"step": 9, "loss": 1.0, "noise/correlation": 0.0, "noise/prior_shift": 0.0}]  # fmt: skip
    (directory / "seed_0" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    if summary:
        (directory / "summary.json").write_text("{}")


def test_a_grid_is_read_and_arms_in_training_are_left_out(tmp_path):
    for arm, coverage, correlation in (("a", 0.8, 0.0), ("b", 0.6, 0.2), ("c", 0.4, 0.5), ("d", 0.2, 0.9)):
        write_arm(tmp_path / arm, coverage, correlation)
    write_arm(tmp_path / "unfinished", 0.9, 0.9, summary=False)
    result = predictors.measure(OPTIONS | {"grid": tmp_path}).figures
    assert list(result["arms"]) == ["a", "b", "c", "d"]
    assert result["arms"]["b"]["final"] == pytest.approx(0.6) and result["arms"]["b"]["coverage"] == pytest.approx(0.3)
    assert result["arms"]["b"]["noise/correlation"] == 0.2 and result["arms"]["b"]["loss"] == 2.0
    assert result["arms"]["b"]["noise/squared_norm"] is None
    assert result["rank_correlation"]["noise/correlation"]["rho"] == pytest.approx(-1)
    assert result["rank_correlation"]["coverage"]["rho"] == pytest.approx(1)
    assert result["rank_correlation"]["loss"] == {"arms": 4} and result["rank_correlation"]["rmse_random"] == {
        "arms": 4
    }


def test_what_cannot_be_ordered_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 finished arms"):
        predictors.measure(OPTIONS | {"grid": tmp_path})
    for arm in "abcd":
        write_arm(tmp_path / arm, 0.5, 0.1)
    with pytest.raises(ValueError, match="early=7: .*keeps steps 5, 9"):
        predictors.measure(OPTIONS | {"grid": tmp_path, "early": 7})
    with pytest.raises(ValueError, match="windows=1: use 2 or more"):
        predictors.measure(OPTIONS | {"grid": tmp_path, "windows": 1})
