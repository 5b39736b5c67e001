"""Many solvers on the same policies, and their differences by hand."""

import numpy as np
import pytest
import yaml

from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.lab import solvers
from immiscible_policy.lab.solvers import read_solvers, summarise, written
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.training.driver import train_run
from tests.small_policy import SPEC, small_policy
from tests.training.helpers import write_small_store

OPTIONS = {key: option.default for key, option in solvers.OPTIONS.items()}


def test_solvers_are_read_and_refused():
    words = ["ddim10", "ddim10-leading", "renoise5", "dpmpp5-eta1", "ddim5-shifted-eta0.5"]
    read = read_solvers(",".join(words))
    assert [written(solver) for solver in read] == words
    assert read == [
        Solver("ddim", 10), Solver("ddim", 10, "leading"), Solver("renoise", 5), Solver("dpmpp", 5, eta=1.0),
        Solver("ddim", 5, "shifted", 0.5),
    ]  # fmt: skip
    for text in ("ddim", "rk10", "ddim0", "10", "", "ddim10-trailing", "dpmpp5-eta2"):
        with pytest.raises(ValueError, match="write a solver and its network calls, such as ddim10"):
            read_solvers(text)
    with pytest.raises(ValueError, match="given twice"):
        read_solvers("ddim10,ddpm5,ddim10")


def test_differences_by_hand():
    ten, five = Solver("ddim", 10), Solver("ddim", 5)
    base, other = np.array([[0.2, 0.4], [0.4, 0.6]]), np.array([[0.3, 0.5], [0.5, 0.7]])
    scores = {("a", ten): base, ("b", ten): other}
    paired = summarise(scores, {"a": [0, 1], "b": [0, 1]}, [ten])["runs"]
    assert paired["a"]["ddim10"]["score"]["mean"] == pytest.approx(0.4) and list(paired["a"]["ddim10"]) == ["score"]
    difference = paired["b"]["ddim10"]["from_run"]
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    of_solver = summarise({("a", ten): base, ("a", five): other}, {"a": [0, 1]}, [ten, five])["runs"]
    assert of_solver["a"]["ddim5"]["from_solver"]["mean"] == pytest.approx(0.1)
    unpaired = summarise(scores, {"a": [0, 1], "b": [2, 3]}, [ten])["runs"]["b"]["ddim10"]["from_run"]
    assert unpaired["mean"] == pytest.approx(0.1) and unpaired["low"] < 0 < unpaired["high"]


def write_run(directory, noise):
    config = {"seed": "0", "noise": {"name": noise}}
    metadata = spec_metadata(SPEC) | {"step": 7, "seed": 0, "config": config}
    weights = small_policy().state_dict()
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    save_checkpoint(directory / "seed_0" / "checkpoints" / "step_000007", metadata, {"model": weights, "ema": weights})
    return str(directory)


def test_the_experiment_rolls_out_every_run_under_every_solver_it_takes(tmp_path):
    runs = [write_run(tmp_path / noise, noise) for noise in ("vanilla", "linear")]
    options = {"runs": named_runs(",".join(runs)), "solvers": "ddim1,renoise1", "episodes": 2}
    outcome = solvers.measure(OPTIONS | options)
    results = outcome.figures["runs"]
    assert list(results["vanilla"]) == list(results["linear"]) == ["ddim1", "renoise1"]
    same = results["linear"]["ddim1"]["from_run"]  # the same weights, starts and noises
    assert same["mean"] == same["low"] == same["high"] == 0
    assert "| linear | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] |" in outcome.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs runs="),
        ({"runs": {"absent": RunDirectory("absent")}}, "absent"),
        ({"runs": {"x": RunDirectory("x")}, "solvers": "rk10"}, "solvers=rk10"),
    ],
)
def test_bad_options_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.measure(OPTIONS | change)


def test_unknown_starts_are_refused_before_anything_is_rolled_out(tmp_path, monkeypatch):
    monkeypatch.setattr(solvers, "rolled_out", lambda *_: pytest.fail("a policy was rolled out"))
    run = write_run(tmp_path / "vanilla", "vanilla")
    with pytest.raises(ValueError, match="starts=first"):
        solvers.measure(OPTIONS | {"runs": named_runs(str(run)), "starts": "first"})


def test_held_out_episodes_score_as_in_training(tmp_path):
    store = write_small_store(tmp_path / "store.zarr", steps=60)
    words = {
        "experiment": "debug", "task": "none", "data": store, "obs": "state", "method": "flow", "solver": "euler",
        "sampling_steps": 2, "steps": 2, "validation": 0.4, "precision": "fp32", "device": "cpu", "wandb": "disabled",
        "out": tmp_path / "run",
    }  # fmt: skip
    train_run(RobotRecipe, compose_config([f"{key}={value}" for key, value in words.items()]))
    run = RunDirectory(tmp_path / "run")
    recorded = [row.metrics["energy_score"] for row in run.episodes()[0] if row.checkpoint == 2]
    options = OPTIONS | {"runs": {"run": run}, "solvers": "euler1,euler2-shifted", "on": "held_out"}
    figures = solvers.measure(options).figures
    assert (figures["task"], figures["obs"]) == ("none", "state") and figures["r2"] < 1
    assert figures["unit"] == "held-out episodes" and figures["starts"] == len(recorded)
    assert figures["runs"]["run"]["euler2-shifted"]["score"]["mean"] == pytest.approx(np.mean(recorded), rel=1e-5)
