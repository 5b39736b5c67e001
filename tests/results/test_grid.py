"""The table of a grid says what its runs say, by hand."""

import json

import pytest
import yaml

from immiscible_policy.results.grid import _quality_table, write_grid
from immiscible_policy.training.options import read_file
from tests.results.runs import write_run

GAIN = {"vanilla": 0.0, "knn_k2": 0.1}
SECONDS = 2.0  # of every metrics row


def plan(directory, steps):
    config = {"task": {"name": "pusht"}, "steps": steps, "noise": {"name": directory.name}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))


def write_arm(directory, gain, seeds=(0, 1, 2), steps=(500, 1000, 1500), trained=1500):
    """Coverage rises by 0.2 every 500 steps and by `gain` everywhere; seeds lie 0.02 apart."""
    write_run(directory, lambda seed, step, start: max(0.0, 0.2 * step / 500 + gain + 0.02 * seed), seeds, steps)
    plan(directory, trained)
    for seed in seeds:
        rows = [{"step": step, "loss": 0.1, "seconds": SECONDS} for step in range(250, 1501, 250)]
        rows.append({"step": 1500, "coverage": 0.6, "noise/correlation": 0.1 * (seed + 1), "noise/prior_shift": gain})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"seed_{seed}" / "metrics.jsonl").write_text(text)


@pytest.fixture
def grid(tmp_path):
    for arm, gain in GAIN.items():
        write_arm(tmp_path / arm, gain)
    return tmp_path


def result(grid, arms=tuple(GAIN), seeds=(0, 1, 2), name="table2"):
    text = write_grid(grid, name, list(arms), list(seeds), read_file(f"experiment/{name}").get("published"))
    assert (grid / f"{name}.md").read_text() == text
    return json.loads((grid / f"{name}.json").read_text()), text


def test_scores_and_paired_differences(grid):
    figures, text = result(grid)
    vanilla, knn = (figures["arms"][arm] for arm in GAIN)
    assert vanilla["scores"]["coverage"]["last10"]["mean"] == pytest.approx(0.42)
    assert vanilla["scores"]["coverage"]["max"]["mean"] == pytest.approx(0.62)
    assert vanilla["scores"]["coverage"]["last"]["mean"] == pytest.approx(0.62)
    assert knn["difference"]["reward"]["last"]["mean"] == pytest.approx(0.1 / 0.95)
    assert knn["scores"]["reward"]["max"]["mean"] == pytest.approx(0.72 / 0.95)
    assert [vanilla["seeds"][str(seed)]["coverage"]["max"] for seed in range(3)] == pytest.approx([0.6, 0.62, 0.64])
    assert knn["difference"]["coverage"]["last10"]["mean"] == pytest.approx(0.1) and "difference" not in vanilla
    assert knn["difference"]["coverage"]["last10"]["low"] == pytest.approx(0.1)
    curve = knn["curve"]
    assert [point["step"] for point in curve] == [500, 1000, 1500]
    assert [point["coverage"]["mean"] for point in curve] == pytest.approx([0.32, 0.52, 0.72])
    assert [point["difference"]["mean"] for point in curve] == pytest.approx([0.1] * 3)
    assert "difference" not in vanilla["curve"][0]
    tested = figures["contrasts"]
    assert tested["metric"] == "coverage" and list(tested["arms"]) == ["knn_k2"]
    assert tested["arms"]["knn_k2"]["mean"] == pytest.approx(0.1) and "p (Holm)" in text
    write_grid(grid, "none", list(GAIN), [0, 1, 2], named=["another"])
    assert json.loads((grid / "none.json").read_text())["contrasts"]["arms"] == {}
    assert "| knn_k2 | 0.520 [" in text and "+0.100 [+0.100, +0.100]" in text
    assert (grid / "table2.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_checkpoint_is_not_the_largest(grid):
    write_run(grid / "falls", lambda seed, step, start: 0.9 - 0.2 * step / 500, (0, 1, 2), (500, 1000, 1500))
    plan(grid / "falls", 1500)
    falls = result(grid, (*GAIN, "falls"))[0]["arms"]["falls"]
    assert [falls["scores"]["coverage"][kind]["mean"] for kind in ("last10", "last", "max")] == pytest.approx(
        [0.5, 0.3, 0.7]
    )
    assert falls["difference"]["coverage"]["last"]["mean"] == pytest.approx(0.3 - 0.62)


def test_many_arms_are_drawn_below_each_other(grid):
    names = [f"arm_{i}" for i in range(8)]
    for i, name in enumerate(names):
        write_arm(grid / name, 0.01 * i)
    result(grid, (*GAIN, *names), name="when")
    result(grid, (*GAIN, *names[:7]), name="shorter")
    tall, shorter = (int.from_bytes((grid / f"{name}.png").read_bytes()[20:24], "big") for name in ("when", "shorter"))
    assert tall > shorter  # in pixels: a line for each arm


def test_published_figures_stand_beside_in_both_readings(grid):
    _, text = result(grid)
    assert "0.796, 0.857" in text and f"{0.7956 / 0.95:.3f}, {0.8571 / 0.95:.3f}" in text
    assert "published" not in result(grid, name="ksweep")[1]


def test_steps_and_seconds_to_a_share_of_the_first_arms_maximum(grid):
    """Vanilla's best mean is 0.62: 0.80 of it is 0.496, which vanilla passes at 1,500 and KNN at 1,000 steps."""
    figures, text = result(grid)
    vanilla, knn = (figures["arms"][arm]["to_quality"]["0.80"] for arm in GAIN)
    assert vanilla["coverage"] == pytest.approx(0.496)
    assert set(vanilla["steps"].values()) == {1500} and set(knn["steps"].values()) == {1000}
    assert set(vanilla["seconds"].values()) == {6 * SECONDS} and set(knn["seconds"].values()) == {4 * SECONDS}
    high = figures["arms"]["vanilla"]["to_quality"]["0.95"]["steps"]
    assert high == {"0": 1500, "1": 1500, "2": 1500}
    assert "| steps (seconds) to | 0.496: 0.80 of vanilla's best | 0.558: 0.90 of" in text
    write_arm(grid / "slow", -0.3)
    assert "never, never, never" in result(grid, (*GAIN, "slow"))[1]


def test_arms_on_other_starts_have_no_paired_difference(grid):
    write_run(grid / "other", lambda *_: 0.3, starts=range(7, 11))
    plan(grid / "other", 1500)
    figures, _ = result(grid, (*GAIN, "other"))
    assert "difference" in figures["arms"]["knn_k2"] and "difference" not in figures["arms"]["other"]
    assert list(figures["contrasts"]["arms"]) == ["knn_k2"]


def test_shares_of_nothing_are_not_reached(tmp_path):
    for arm, gain in {"vanilla": -9.0, "knn_k2": 0.0}.items():
        write_arm(tmp_path / arm, gain)
    figures, _ = result(tmp_path)
    assert figures["arms"]["vanilla"]["scores"]["coverage"]["max"]["mean"] == 0
    assert not figures["arms"]["knn_k2"].get("to_quality")


def test_where_lower_is_better_a_share_is_a_multiple_of_the_best():
    once = {"steps": {"0": 500}, "seconds": {"0": 7.0}}
    entry = {"to_quality": {"0.80": {"energy_score": 0.1} | once, "0.95": {"energy_score": 0.0842} | once}}
    head, _, row = _quality_table({"plain": entry}, "plain").splitlines()
    assert head == "| steps (seconds) to | 0.100: 1.25 times plain's best | 0.084: 1.05 times plain's best |"
    assert row == "| plain | 500 (7 s) | 500 (7 s) |"


def test_the_noise_audit_is_the_mean_over_seeds(grid):
    figures, text = result(grid)
    assert figures["arms"]["knn_k2"]["noise"] == {
        "noise/correlation": pytest.approx(0.2), "noise/prior_shift": pytest.approx(0.1),
    }  # fmt: skip
    assert "| noise audit | correlation | prior shift |" in text


def test_what_is_incomplete_is_named_and_not_pooled(grid):
    write_arm(grid / "linear", 0.0, seeds=(0, 2))
    write_arm(grid / "idp26", 0.0, trained=9000)
    figures, text = result(grid, (*GAIN, "linear", "idp26", "c2ot"))
    assert figures["arms"]["linear"] == {"missing_seeds": [1]}
    assert figures["arms"]["idp26"] == figures["arms"]["c2ot"] == {"missing_seeds": [0, 1, 2]}
    assert "**linear is incomplete**: seeds 1 are missing" in text
    assert "| linear | incomplete | incomplete |" in text and "linear, seed 0" not in text


def test_a_partial_table_is_corrected_for_all_comparisons_that_are_planned(tmp_path):
    for arm, gain in {"vanilla": 0, "knn_k2": 1}.items():
        write_run(tmp_path / arm, lambda seed, step, start, of=gain: 0.3 + 0.1 * of + 0.05 * ((seed + 2 * of) % 3))
        plan(tmp_path / arm, 1500)

    def tested(*arms, named=()):
        write_grid(tmp_path, "partial", arms, [0, 1, 2], named=named)
        return json.loads((tmp_path / "partial.json").read_text())["contrasts"]["arms"]["knn_k2"]

    alone = tested("vanilla", "knn_k2")
    assert 0.01 < alone["p"] == alone["p_holm"] < 0.2
    for more in (
        tested("vanilla", "knn_k2", "c2ot", "idp26"), tested("vanilla", "knn_k2", named=["knn_k2", "c2ot", "idp26"])
    ):  # fmt: skip
        assert more["p"] == alone["p"] and more["p_holm"] == pytest.approx(3 * alone["p"])


def test_the_number_of_averaged_checkpoints_is_that_of_the_longest_arm(grid):
    write_arm(grid / "short", 0.0, steps=(500,), trained=500)
    for arms in (("short", "vanilla"), ("vanilla", "short")):
        figures, text = result(grid, arms)
        assert {arm: figures["arms"][arm]["averaged"] for arm in arms} == {"short": 1, "vanilla": 3}
        assert "`last 3`: mean of the last 3 evaluated checkpoints (of all where there are fewer)" in text


def test_nothing_trained_yet_is_a_table_of_gaps(tmp_path):
    figures, text = result(tmp_path)
    assert all(item == {"missing_seeds": [0, 1, 2]} for item in figures["arms"].values())
    assert text.count("is incomplete") == 2


def test_the_first_arm_missing_leaves_no_differences_from_another(grid):
    """Differences are from the first arm; where that is incomplete there are none."""
    (grid / "vanilla" / "seed_1" / "episodes.csv").unlink()
    figures, _ = result(grid)
    assert "difference" not in figures["arms"]["knn_k2"] and "to_quality" not in figures["arms"]["knn_k2"]
