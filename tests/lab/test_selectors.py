"""The table of all selectors, through the real command line."""

import json
import math
from functools import partial

import pytest

from immiscible_policy.lab import selectors
from immiscible_policy.noise.audit import budget
from immiscible_policy.noise.prediction import fit_mlp_prediction
from tests.training.helpers import here, refused, write_small_store


def test_the_table_of_selectors(tmp_path, monkeypatch):
    short = partial(fit_mlp_prediction, steps=10)
    monkeypatch.setattr(budget, "PROBES", (budget.PROBES[0], short))
    for module in (budget, selectors):
        monkeypatch.setattr(module, "fit_mlp_prediction", short)
    store = write_small_store(tmp_path / "small.zarr", episodes=6, steps=40)
    words = (f"data={store}", "batch_size=32", "batches=3", f"out={tmp_path / 'out'}")
    result = here("-m", "immiscible_policy.lab", "selectors", *words)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    assert (out / "selectors.png").read_bytes().startswith(b"\x89PNG") and (out / "selectors.md").exists()
    outcome = json.loads((out / "selectors.json").read_text())["figures"]["selectors"]
    distance = {name: figures["distance"]["percent"] for name, figures in outcome.items()}
    norm = {name: figures["selected"]["squared_norm"] for name, figures in outcome.items()}
    assert distance["vanilla"] == 0
    assert "The observation explains" in (out / "selectors.md").read_text()
    row = next(line for line in (out / "selectors.md").read_text().splitlines() if line.startswith("| KNN k=2 |"))
    assert row.split(" | ")[1:3] == [f"{distance['KNN k=2']:+.2f}", f"{norm['KNN k=2']:.2f}"] and "|  |" not in row
    assert distance["KNN k=8"] < distance["KNN k=2"] < -1 and distance["linear, pool of 4"] < distance["linear"] < -1
    assert all(math.isclose(norm[name], norm["vanilla"], rel_tol=1e-9) for name in ("linear", "idp26", "c2ot"))
    assert norm["KNN k=8"] < norm["KNN k=2"] < norm["vanilla"] - 1
    assert outcome["sign"]["divergence"] == math.log(2) and outcome["linear"]["divergence"] == math.log(32)
    assert outcome["linear, residual"]["held_out"]["shift"] < outcome["linear"]["held_out"]["shift"]
    assert outcome["linear"]["correlation"]["row_means"] > outcome["KNN k=2"]["correlation"]["row_means"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batches=1"], "batches=1: choose 2 to 1,000"),
        (["batch_size=2"], "batch_size=2: choose 4"),
        (["bathces=3"], "did you mean 'batches'"),
        (["data=/nowhere"], "/nowhere"),
    ],
)
def test_unusable_words_are_refused_in_one_line(tmp_path, words, said):
    out = tmp_path / "out"
    result = here("-m", "immiscible_policy.lab", "selectors", f"out={out}", *words)
    assert said in refused(result) and not out.exists()


def test_an_unknown_experiment_names_the_known_ones():
    assert "did you mean 'distances'" in refused(here("-m", "immiscible_policy.lab", "distance"))
