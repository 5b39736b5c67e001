"""Every benchmark as a dry run through the real command line: structure, agreement with the peers, never speed."""

import json
import re

import pytest

from benchmarks.__main__ import main
from benchmarks.peers import INSTALLED
from immiscible_policy.noise import SELECTORS
from tests.training.helpers import here

PEERS = [
    "none",
    pytest.param(
        "all",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not INSTALLED.exists(), reason="no peers here; `make peers` installs them"),
        ],
    ),
]


def quick(name, out, *words):
    """Figures of a dry run; its JSON, text and picture are there."""
    result = here("-m", "benchmarks", name, "quick=true", f"out={out}", *words)
    assert result.returncode == 0, result.stderr
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / f"{name}.md").read_text().strip() in result.stdout
    record = json.loads((out / f"{name}.json").read_text())
    assert record["command"].startswith("python -m benchmarks") and record["versions"]["torch"]
    return record["figures"]


def all_positive(values):
    return bool(values) and all(value > 0 for value in values)


@pytest.mark.parametrize("peers", PEERS)
def test_step(tmp_path, peers, monkeypatch):
    monkeypatch.setattr("benchmarks.step.PROFILED", 1)
    if peers == "none":
        monkeypatch.setattr("benchmarks.step.compile_seconds", lambda: 1.0)  # starts two processes
    figures = quick("step", tmp_path, f"peers={peers}")
    arms = {f"{noise} {engine}" for noise in ("vanilla", "linear") for engine in ("eager", "fast")}
    peer = {"LeRobot"} if peers == "all" else set()
    assert set(figures["ms_per_step"]) == {"bare"} | arms | peer and all_positive(figures["ms_per_step"].values())
    assert set(figures["ratio_to_bare"]) == arms | peer and all_positive(figures["ratio_to_bare"].values())
    assert set(figures["assignment_adds"]) == {"eager", "fast"}
    assert list(figures["kernels"]) == ["forward and backward", "sampling, 50 at once", "sampling, 1 at once"]
    for kernels in figures["kernels"].values():
        assert set(kernels) == {"fused", "plain", "over", "products"} and all_positive(kernels.values())
        assert kernels["products"] < 1
    assert figures["compile_s"] > 0
    widths = figures["curves"]["width"]
    assert list(widths) == ["8", "16"] and widths["8"]["parameters"] < widths["16"]["parameters"]
    assert list(figures["curves"]["batch"]) == ["4", "8"]
    assert "ours / floor" in (tmp_path / "step.md").read_text()
    if peers == "all":
        assert figures["lerobot"]["parameters"] == figures["network"]["parameters"]
        assert set(figures["lerobot_over"]) == {"bare"} | arms and all_positive(figures["lerobot_over"].values())


@pytest.mark.parametrize("peers", PEERS)
def test_selection(tmp_path, peers):
    figures = quick("selection", tmp_path, f"peers={peers}")
    assert list(figures["knn"]) == ["B=8 D=32", "B=8 D=3072", "B=8 D=4096", "B=32 D=3072"]
    for actual in figures["knn"].values():
        assert set(actual["ms"]) == {"randn", "auto k=1", "literal k=1", "auto k=8", "literal k=8"}
        assert {"k=8 over randn", "k=8 over literal"} <= set(actual["ratios"]) and all_positive(
            actual["ratios"].values()
        )
    every = {"randn", *SELECTORS, "knn k=8", "knn k=8 literal"} - {"vanilla", "knn"}
    assert list(figures["selectors"]) == ["D=32", "D=3072"]
    for dims, known in (("D=32", {"linear, potentials"}), ("D=3072", set())):
        assert list(figures["selectors"][dims]) == ["8", "16"]
        for actual in figures["selectors"][dims].values():
            assert set(actual["ms"]) == every | known and all_positive(actual["ms"].values())
            assert set(actual["over_randn"]) == (every | known) - {"randn"}
    tables = figures["assignment_on_pusht_actions"]
    assert list(tables) == ["B=8", "B=16"]
    for actual in tables.values():
        assert {"scipy", "scipy potentials", "linear", "linear, potentials"} <= set(actual["ms"])
        assert all_positive(actual["ratios"].values()) and actual["largest_relative_difference_of_costs"] < 1e-6
        if peers == "all":
            assert actual["ms"]["torchcfm"] > 0 and 0 < actual["left_out_by_torchcfm"] < 1


def test_a_candidate_without_patience_left_is_not_tried_on_larger_batches(tmp_path):
    main(["selection", "quick=true", "peers=none", "patience=0", f"out={tmp_path}"])
    figures = json.loads((tmp_path / "selection.json").read_text())["figures"]
    tables, by_batch = figures["assignment_on_pusht_actions"], figures["selectors"]["D=32"]
    assert "scipy" in tables["B=8"]["ms"] and tables["B=16"]["ms"] == {}
    assert "linear" in by_batch["8"]["ms"] and list(by_batch["16"]["ms"]) == ["randn"]
    assert "|  |" in (tmp_path / "selection.md").read_text()


@pytest.mark.slow
def test_two_seeds_at_once_and_one_after_another(tmp_path):
    words = ("peers=none", "seeds=2", "noise=vanilla", "engine=eager")
    actual = quick("step", tmp_path, *words)["seeds"]
    assert actual["seeds"] == 2 and list(actual["steps_per_s"]) == ["in turn", "together"]
    assert all_positive(actual["steps_per_s"].values()) and actual["together_over_in_turn"] > 0


@pytest.mark.parametrize("peers", PEERS)
def test_env(tmp_path, peers):
    figures = quick("env", tmp_path, f"peers={peers}")
    batches = {f"{kind} {n} x{threads}" for kind in ("make_vec", "simulate") for n in (1, 4) for threads in (1, 2)}
    peer = {"gym-pusht"} if peers == "all" else set()
    assert set(figures["steps_per_s"]) == {"one environment"} | batches | peer
    assert all_positive(figures["steps_per_s"].values()) and all_positive(figures["over_one_environment"].values())
    assert figures["largest_difference_px"]["simulate and one environment"] == 0
    evaluation = figures["evaluation"]
    assert 0 < evaluation["network_seconds"] < evaluation["seconds"] and 0 < evaluation["share_of_simulation"] < 1
    assert figures["episodes"]["share_with_contact"] > 0
    if peers == "all":
        assert figures["largest_difference_px"]["simulate and gym-pusht"] < 1e-6
        assert figures["coverage"]["largest_difference"] < 1e-12
        assert all_positive(figures["over_gym_pusht"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "noise=knnn"], "unknown noise 'knnn'; did you mean 'knn'?"),
        (["step", "engine=slow"], "unknown engine 'slow'"),
        (["step", "turns=0"], "turns=0: needs 1 to 1,000,000"),
        (["step", "widths=7"], "down_dims=[7, 14, 28]"),
        (["selection", "device=tpu"], "device=tpu"),
        (["selection", "ks=8..2"], "runs backwards"),
        (["env", "steps=301"], "steps=301: an episode has at most 300"),
        (["env", "threads=0"], "threads=0: needs 1 or more"),
        (["envs"], "unknown experiment 'envs'; did you mean 'env'?"),
    ],
)
def test_unusable_words_are_refused_before_any_work(tmp_path, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        main([*words, "peers=none", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("peers", PEERS)
def test_time_to_policy(tmp_path, peers):
    arms = quick("time_to_policy", tmp_path, f"peers={peers}")["arms"]
    assert set(arms) == ({"ours", "LeRobot", "LeRobot, immiscible_flow"} if peers == "all" else {"ours"})
    assert [point["step"] for point in arms["ours"]["0"]["curve"]] == [2, 4]
    for own in arms.values():
        assert own["0"]["curve"][0]["step"] == 2 and own["0"]["step"] % 2 == 0
        assert 0 < own["0"]["curve"][0]["seconds"] < own["0"]["seconds"] and 0 <= own["0"]["coverage"] < 0.8
