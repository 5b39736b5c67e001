"""The task Avoid: what is scored, by hand; set metrics in summary and comparison; its own demonstrations."""

import json
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from immiscible_envs.avoid import WAYS
from immiscible_policy.commands.demos import make
from immiscible_policy.demos.store import content_hash, open_store
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.results.compare import compare, verdict
from immiscible_policy.results.grid import write_grid
from immiscible_policy.results.report.evidence import gather
from immiscible_policy.results.report.page import render
from immiscible_policy.results.summary import summarize
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task
from immiscible_policy.tasks.avoid import entropy, number_of_ways, shares, total_variation
from tests.results.test_report import ORIGIN, text

AVOID = find_task("avoid")
EVERY = {"way": np.arange(24.0)}
ONE = {"way": np.full(10, 3.0)}
NONE = {"way": np.full(5, -1.0)}
HALF = {"way": np.array([0.0, 0.0, 5.0, -1.0])}


@pytest.mark.parametrize(
    ("episodes", "ways", "nats", "distance"),
    [
        (EVERY, 24, math.log(24), 0),
        (ONE, 1, 0, 23 / 24),
        (NONE, 0, 0, 1),
        # p = 1/2, 1/4 and 1/4 without a way; 1/2 (11/24 + 5/24 + 22/24 + 6/24) = 44/48
        (HALF, 2, math.log(3) - 2 / 3 * math.log(2), 44 / 48),
    ],
)
def test_set_metrics_by_hand(episodes, ways, nats, distance):
    assert number_of_ways(episodes) == ways
    assert entropy(episodes) == pytest.approx(nats, abs=1e-12)
    assert total_variation(episodes) == pytest.approx(distance)
    assert shares(episodes).sum() == pytest.approx(1)


class Towards:
    """Sends every episode through an outermost gap, left or right by the parity of its number, or into a pillar."""

    obs, obs_steps = "position", 2

    def act(self, observed, generators):
        positions, target = observed.numbers[:, -1], []
        for row, (x, y) in enumerate(positions):
            side = (100.0, 256.0, 412.0)[row % 3]
            target.append([side, 460.0] if y > 440 and abs(x - side) > 5 else [side, 0.0])
        return np.array(target)[:, None]


def test_rows_carry_the_way_and_what_touched_is_no_success():
    recorder = Recorder(AVOID)
    rows = evaluate(AVOID, Towards(), range(6), seed=0, checkpoint=0, batch_size=6, on_step=recorder.on_step)
    left, right = WAYS.index((0, 0, 0)), WAYS.index((3, 2, 1))
    assert [row.metrics["way"] for row in rows] == [left, -1, right] * 2
    assert [row.metrics["collision_free"] for row in rows] == [1, 0, 1] * 2
    assert [row.metrics["collision"] for row in rows] == [0, 1, 0] * 2
    scenes = recorder.recording(rows).scenes  # (T, N, 2)
    taken = [AVOID.modes.classify(scenes[: row.steps + 1, index]) for index, row in enumerate(rows)]
    assert taken == [left, 24, right] * 2
    assert AVOID.draw(scenes[3, 0], 64).shape == (64, 64, 3)


def test_rows_do_not_depend_on_how_many_are_rolled_out_together():
    together = evaluate(AVOID, Towards(), [3, 4, 5], seed=0, checkpoint=0, batch_size=6)
    assert together == evaluate(AVOID, Towards(), [3, 4, 5, 6, 7], seed=0, checkpoint=0, batch_size=6)[:3]


def test_its_demonstrations_are_those_of_the_command_and_cover_every_way(tmp_path, capsys):
    make.main(["task=avoid", f"out={tmp_path / 'again.zarr'}"])
    demos = open_store(AVOID.demonstrations(), AVOID.columns)
    assert (
        content_hash(demos) == content_hash(tmp_path / "again.zarr") and content_hash(demos) in capsys.readouterr().out
    )
    taken = [AVOID.modes.classify(demos["position"][steps]) for steps in demos.episodes]
    counts = np.bincount(taken, minlength=25)
    assert counts[24] == 0 and stats.chisquare(counts[:24]).pvalue > 0.05
    assert AVOID.modes.counted(counts) == "24 of 24, 10 to 10 times each, and 0 none"
    assert list(AVOID.problems(demos)) == []


def write_run(path, ways):
    """A run of two seeds and two checkpoints: the ways (2, 2, N) of its episodes."""
    run = RunDirectory(path)
    run.begin("task: {name: avoid}\nsteps: 20\neval_every: 10\nseed: 0..1\n", {})
    for seed, of_seed in enumerate(ways):
        for step, of_step in zip((10, 20), of_seed, strict=True):
            run.seed(seed).append_episodes(
                EpisodeRow(step, start, seed, {"collision_free": way >= 0, "collision": way < 0, "way": way}, 30)
                for start, way in enumerate(of_step)
            )
    return run


@pytest.fixture
def runs(tmp_path):
    """One that takes all ways, and one that takes few."""
    every = np.arange(24.0)
    many = write_run(tmp_path / "many", [[every, every[::-1]], [every, np.roll(every, 5)]])
    return many, write_run(tmp_path / "few", [[every % 2, every % 4], [every % 3, every % 3]])


def test_the_summary_has_the_set_metrics_over_seeds(runs):
    block = summarize(runs[1])
    assert list(block["pooled"]) == ["collision_free", "ways", "entropy", "total_variation"]
    assert [block["seeds"][seed]["ways"]["last10"]["mean"] for seed in "01"] == [3, 3]
    assert block["pooled"]["entropy"]["last10"]["mean"] == pytest.approx(math.log(2 * 4 * 3 * 3) / 4)
    assert block["pooled"]["ways"]["last10"]["over"] == "seeds" and "max" not in block["pooled"]["ways"]
    assert "total_variation" in (runs[1].path / "summary.md").read_text()


def test_a_grid_has_the_set_metrics_and_compares_no_arms_of_different_tasks(runs, tmp_path):
    names = [run.name for run in runs]
    text = write_grid(tmp_path, "ways", names, [0, 1])
    arms = json.loads((tmp_path / "ways.json").read_text())["arms"]
    assert [arms[name]["together"]["ways"]["mean"] for name in names] == [24, 3]
    assert "| all episodes together, last 2 | ways |" in text and "difference" in arms["few"]
    pusht = {"coverage": 0.5, "final_coverage": 0.5, "reward": 0.5, "success": 0.0}
    other = RunDirectory(tmp_path / "pusht")
    other.begin("task: {name: pusht}\nsteps: 20\neval_every: 10\nseed: 0..1\n", {})
    for seed, step in product(range(2), (10, 20)):
        other.seed(seed).append_episodes([EpisodeRow(step, start, seed, pusht, 30) for start in range(4)])
    text = write_grid(tmp_path, "mixed", [*names, "pusht"], [0, 1])
    arms = json.loads((tmp_path / "mixed.json").read_text())["arms"]
    assert "difference" not in arms["pusht"] and "difference" in arms["few"]
    assert "| pusht | 0.500" in text and "Arms of other tasks are not compared with it." in text


def test_the_report_shows_the_set_metrics_of_one_run_and_of_two(runs):
    many, few = runs
    alone = text(render(gather({"few": few}, "few"), ORIGIN, videos=0))
    assert "ways3.000" in alone and "total variation0.875" in alone
    both = text(render(gather({"few": few, "many": many}, "few"), ORIGIN, videos=0))
    assert "ways+21.000" in both and "24.000" in both


def test_the_comparison_says_which_run_has_more_ways_and_is_nearer_to_the_demonstrations(runs):
    results = {result.name: result for result in compare(*runs).results}
    assert results["ways, last 2"].difference.estimate == 21 and results["ways, last 2"].together
    assert "A is better than B" in verdict(results["ways, last 2"])
    nearer = results["total_variation, last 2"]
    assert nearer.difference.estimate < 0 and "A is better than B" in verdict(nearer)
    assert compare(*runs).headline.name == "collision_free, last 2"
