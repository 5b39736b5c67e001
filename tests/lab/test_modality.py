"""Rollouts from symmetric starts, what is counted of them, and the command."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from immiscible_envs.geometry import CENTER_OF_GRAVITY, place
from immiscible_envs.modes import CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED, symmetric_starts
from immiscible_policy.commands.eval_modality import figures, main, markdown, shared_checkpoints
from immiscible_policy.evaluation.agent import load_agent, spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.lab.modality import arms
from immiscible_policy.lab.modality.arms import (
    Arm,
    Rollout,
    departures,
    difference,
    estimate,
    find_gaps,
    followed,
    roll_out,
)
from immiscible_policy.lab.modality.plots import evolution_figure, mode_colour, paths_figure
from immiscible_policy.policy.build import build_policy
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.writer import finite
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task
from immiscible_policy.tasks.pusht import HUMAN_DATA
from immiscible_policy.training.options import read_file
from tests.small_policy import SPEC

PUSHT = find_task("pusht")
PUBLISHED = ["experiment=modality_paper"]

ON_TOP = [0, 2]  # starts whose agent stands before the top of the bar; in the others it stands before the stem's end


class Pusher:
    """Pushes one end of the bar from where it stands, for ever."""

    obs, obs_steps = "state", 2

    def __init__(self, side: float):
        self.side = side

    def act(self, observed, generators):
        now = observed.numbers[:, -1]
        above = place([(0.0, 0.0)], now[:, 2:])[:, 0] - place([(0.0, 45.0)], now[:, 2:])[:, 0]
        on_top = np.sum((now[:, :2] - place([(0.0, 45.0)], now[:, 2:])[:, 0]) * above, axis=1) > 0
        target = [(self.side * 50.0, 30.0 if top else 0.0) for top in on_top]
        aim = np.stack([place([point], pose)[0] for point, pose in zip(target, now[:, 2:], strict=True)])
        return np.repeat(aim[:, None], 2, axis=1)


class Jumpy:
    """Walks about at random, by its own generator."""

    obs, obs_steps = "state", 2

    def act(self, observed, generators):
        noise = np.stack([torch.randn(8, 2, generator=source).numpy() for source in generators])
        return observed.numbers[:, -1:, :2] + 60 * noise


def small_arm(name="vanilla", seeds=(0, 1), counts=None, coverage=0.5) -> Arm:
    """Two checkpoints, two starts, four rollouts each."""
    if counts is None:
        counts = [[[[2, 2, 0], [2, 2, 0]], [[4, 0, 0], [0, 4, 0]]], [[[1, 1, 2], [2, 2, 0]], [[3, 1, 0], [0, 2, 2]]]]
    counts = np.array(counts)
    time = np.linspace(0, 1, 6)[:, None]
    example = [
        Rollout(0, symmetric_starts()[0] + time * (9.0, 30.0, -20.0, 10.0, turn), mode, 0.9)
        for mode, turn in ((CLOCKWISE, 3.0), (COUNTER_CLOCKWISE, -3.0), (UNDECIDED, 0.5))
    ]
    return Arm(name, RunDirectory(f"runs/{name}"), PUSHT, PUSHT.modes, list(seeds), [10, 20], counts,
               np.full(counts.shape[:3], coverage), np.array([6, 6, 0]), example, [])  # fmt: skip


def test_pushing_either_end_of_the_bar_gives_opposite_modes():
    left, right = (roll_out(PUSHT, PUSHT.modes, Pusher(side), 0, 0, repetitions=1) for side in (-1, 1))
    modes = [[rollout.mode for rollout in result] for result in (left, right)]
    assert {*modes[0], *modes[1]} == {CLOCKWISE, COUNTER_CLOCKWISE}
    assert all(a != b for a, b in zip(*modes, strict=True))
    # A force towards the stem at x > 0 of the block turns x into y: clockwise, as y points down.
    assert [modes[1][start] for start in ON_TOP] == [CLOCKWISE] * 2


def test_rollouts_begin_at_their_start_and_end_with_their_episode():
    result = roll_out(PUSHT, PUSHT.modes, Pusher(1), 0, 0, repetitions=2)
    assert [rollout.start for rollout in result] == [0, 0, 1, 1, 2, 2, 3, 3]
    for rollout in result:
        np.testing.assert_allclose(rollout.scenes[0], symmetric_starts()[rollout.start], atol=1e-9)
        assert len(rollout.scenes) == 301 and 0 <= rollout.score < 0.95


def test_noise_is_a_function_of_start_and_repetition(monkeypatch):
    monkeypatch.setattr(arms, "evaluate", partial(evaluate, max_steps=30))
    few, many = (
        roll_out(PUSHT, PUSHT.modes, Jumpy(), 0, 0, repetitions) for repetitions in (2, 14)
    )  # 8 in one batch, 56 in two
    kept = [rollout for number, rollout in enumerate(many) if number % 14 < 2]
    for a, b in zip(few, kept, strict=True):
        assert (a.start, a.score) == (b.start, b.score) and np.array_equal(a.scenes, b.scenes)
    assert len({rollout.scenes[-1].tobytes() for rollout in many}) == 56


def test_states_need_one_row_per_start():
    with pytest.raises(ValueError, match=r"state of shape \(4, 5\) for 3 starts"):
        evaluate(PUSHT, Jumpy(), [1, 2, 3], seed=0, checkpoint=0, options={"state": symmetric_starts()})


def test_given_states_replace_the_published_ones_and_names_keep_the_noise():
    starts = symmetric_starts()[:3]
    seen = []
    short = partial(evaluate, PUSHT, Jumpy(), seed=0, checkpoint=0, batch_size=3, max_steps=10)
    rows = short([7, 8, 9], options={"state": starts}, on_step=lambda step, states, *_: seen.append(states.copy()))
    np.testing.assert_allclose(seen[0], starts, atol=1e-9)
    assert [row.start for row in rows] == [7, 8, 9]
    assert short([9], options={"state": starts[2:]}) == rows[2:]


def test_measures_by_hand():
    arm = small_arm()
    assert arm.repetitions == 4
    assert arm.values("majority")[..., 0].tolist() == [[0.5, 1.0], [0.5, 5 / 6]]
    # last checkpoint: start 0 of seed 1 has shares (3/4, 1/4, 0), start 1 (0, 1/2, 1/2), against (1/2, 1/2, 0)
    assert arm.values("total_variation")[:, 1].tolist() == [[0.5, 0.5], [0.25, 0.5]]
    assert arm.values("total_variation")[1, 0].tolist() == [0.5, 0.0]
    assert (arm.values("coverage") == 0.5).all()
    assert arm.floor("coverage") is None
    assert arm.floor("total_variation") == pytest.approx([3 / 16 + 0] * 2)  # E|X/4 - 1/2|, X ~ binomial(4, 1/2)
    # E max(X, n - X) of fair coins: 11/4 for n = 4, 3/2 for n = 2; seed 0 decides 4 and 4, seed 1 decides 4 and 2
    four, two = 11 / 4, 3 / 2
    assert arm.floor("majority") == pytest.approx([(four / 4 + (four + two) / 6) / 2] * 2)


def test_the_published_share_is_that_of_the_mode_which_dominates_for_the_first_run():
    """Seed 0: vanilla goes left from both starts, the other run once in four; seed 1: 3 of 4 and nothing."""
    first = [[[9, 1, 0], [6, 2, 2]], [[1, 9, 0], [1, 9, 0]]]
    other = [[[1, 1, 8], [0, 2, 8]], [[1, 3, 6], [0, 0, 10]]]
    assert followed(other, first).tolist() == [0.25, 0.75]
    assert followed(first, first).tolist() == [15 / 18, 0.9]
    undecided = [[[4, 4, 2], [6, 2, 2]], [[0, 0, 10], [1, 9, 0]]]  # from the first start no mode leads
    assert followed(other, undecided)[0] == 0
    assert np.isnan(followed(other, undecided)[1])  # the second seed's other start has nothing decided


def test_a_seed_without_a_decided_rollout_is_left_out_and_an_arm_of_such_has_no_majority():
    stuck = [[0, 0, 4], [0, 0, 4]]
    arm = small_arm(counts=[[[[2, 2, 0], [4, 0, 0]]] * 2, [stuck, stuck]])
    assert estimate(arm.values("majority")[:, -1]).estimate == 6 / 8
    assert estimate(arm.values("total_variation")[1:, -1]).estimate == 1
    nothing = small_arm(counts=[[stuck, stuck]] * 2)
    assert estimate(nothing.values("majority")[:, -1]) is None
    assert np.isnan(nothing.floor("majority")).all()
    assert difference(nothing, arm, "majority") is None
    assert "nothing decided" in markdown([nothing, arm])
    assert finite(figures([nothing]))["arms"][0]["majority"][-1]["mean"] is None


def test_differences_are_paired_where_the_seeds_are_the_same():
    even, base = [[2, 2, 0], [2, 2, 0]], small_arm()
    arm = small_arm("linear", counts=[[even, even]] * 2)
    paired = difference(arm, base, "majority")
    assert paired.estimate == pytest.approx(0.5 - (1 + 5 / 6) / 2)
    half = 12.706 * (1 / 6) / 2  # t(1) times the standard error of the differences -1/2 and -1/3
    assert paired.high - paired.estimate == pytest.approx(half, rel=1e-3)
    other = difference(small_arm("linear", seeds=(5, 6), counts=[[even, even]] * 2), base, "total_variation")
    assert other.estimate == pytest.approx(-7 / 16)


def test_the_table_stands_beside_the_published_figures():
    text = markdown([small_arm(), small_arm("linear")])
    row = next(line for line in text.splitlines() if line.startswith("| vanilla"))
    assert "| 2 | 20 | 43.8% / 43.8% / 12.5% |" in row and "0.917 [" in row
    assert "| published: vanilla, 10 seeds |  |  |  | 0.976 |" in text and "| 0.9516 |" in text
    assert "| published: assignment, 10 seeds |  |  |  | 0.65 |" in text and "| 0.9539 |" in text
    assert "| linear | +0.000 [+0.000, +0.000] |" in text
    other = markdown([small_arm(), replace(small_arm("linear"), departures=["epochs=20 (published: 5000)"])])
    assert "left out: linear: epochs=20 (published: 5000)." in other and "0.976" not in other


def test_the_published_protocol_is_the_experiments_and_anything_else_departs_from_it(tmp_path: Path):
    config = compose_config(PUBLISHED)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "provenance.json").write_text(json.dumps({"data": {"content_hash": HUMAN_DATA[0]}}))
    run, solver, modes = RunDirectory(tmp_path), Solver(config.solver, config.sampling_steps), PUSHT.modes
    assert config.epochs == 5000 and departures(run, modes.first(1), solver, 5000.0, 50) == []
    assert departures(run, modes, Solver("ddim", 10), 20.2, 25) == [
        "epochs=20 (published: 5000)",
        "solver=ddim (published: ddpm)",
        "sampling_steps=10 (published: 100)",
        "starts=4 (published: 1)",
        "repetitions=25 (published: 50)",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("noise=idp26 start=500", "noise=idp26 start=500 (published: vanilla or idp26 start=50ep)"),
        ("noise=knn k=4", "noise=knn (published: vanilla or idp26 start=50ep)"),
    ],
)
def test_other_noise_and_other_data_depart_from_the_published_protocol(tmp_path: Path, words: str, said: str):
    config = compose_config([*PUBLISHED, *words.split()])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "provenance.json").write_text(json.dumps({"data": {"content_hash": "f" * 64}}))
    solver = Solver(config.solver, config.sampling_steps)
    assert departures(RunDirectory(tmp_path), PUSHT.modes.first(1), solver, 5000.0, 50) == [
        said,
        "data=ffffffffffff (published: 2b639404c122 or 99dd4261dd5c)",
    ]


def test_more_starts_than_there_are_are_refused():
    assert len(PUSHT.modes.first(2)) == 2
    with pytest.raises(ValueError, match="starts=5: there are 4 starts"):
        PUSHT.modes.first(5)


def test_the_published_data_of_both_protocols_are_the_same():
    assert read_file("experiment/table2")["protocol"]["data"] == list(HUMAN_DATA)


def test_json_holds_the_counts_and_every_checkpoint():
    content = figures([small_arm(), small_arm("linear")])
    first, second = content["arms"]
    assert first["counts"] == small_arm().counts.tolist() and first["difference"] == {}
    assert [row["step"] for row in first["majority"]] == [10, 20]
    assert first["majority"][1]["by_seed"] == [1.0, pytest.approx(5 / 6)]
    assert first["shares"][1] == [7 / 16, 7 / 16, 2 / 16]
    assert second["difference_to"] == "vanilla" and set(second["difference"]) == {
        "majority",
        "total_variation",
        "coverage",
    }


def test_the_evolution_shows_every_seed_and_start():
    figure = evolution_figure([small_arm(), small_arm("linear")])
    panels = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(("vanilla", "linear"))]
    lines = [line.get_ydata() for line in panels[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert [list(line) for line in lines] == [[0.5, 1.0], [0.5, 0.0], [0.5, 0.75], [0.5, 0.0]]
    (coverage,) = (axes for axes in figure.axes if "coverage" in axes.get_title(loc="left"))
    assert [list(line.get_ydata()) for line in coverage.lines] == [[0.5, 0.5]] * 2


def test_paths_have_the_colour_of_their_mode_and_the_agents_end_at_the_quarter_turn():
    arm = small_arm()
    top, bottom = paths_figure([arm]).axes
    agents, blocks = ([line for line in axes.lines if len(line.get_xdata()) > 1] for axes in (top, bottom))
    for lines in (agents, blocks):
        assert [line.get_color() for line in lines] == [mode_colour(rollout.mode, 3) for rollout in arm.example]
    for line, rollout, steps in zip(agents, arm.example, (4, 4, 6), strict=True):  # 2 rad of 3 after four states
        np.testing.assert_allclose(line.get_xydata(), rollout.scenes[:steps, :2])
    for line, rollout in zip(blocks, arm.example, strict=True):
        centres = np.concatenate([place([CENTER_OF_GRAVITY], pose) for pose in rollout.scenes[:, 2:]])
        np.testing.assert_allclose(line.get_xydata(), centres)
    assert "1 clockwise, 1 counter-clockwise, 1 undecided" in top.get_title()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds of an untrained policy; only steps 10 and 20 are kept by both."""
    weights = build_policy(SPEC).state_dict()
    run = tmp_path_factory.mktemp("runs") / "vanilla"
    for seed, steps in ((0, (10, 20)), (1, (10, 20, 30))):
        for step in steps:
            path = run / f"seed_{seed}" / "checkpoints" / f"step_{step:06d}"
            save_checkpoint(path, spec_metadata(SPEC) | {"step": step, "seed": seed}, {"ema": weights})
    (run / "config.yaml").write_text(compose_config(["experiment=debug", "mirror=true", "seed=0..1"]).to_yaml())
    return run


def test_a_run_with_missing_seeds_or_steps_is_called_incomplete(run: Path):
    assert find_gaps(RunDirectory(run), [0, 1], [10, 20]) == []  # its configuration asks for seeds 0..1 and 20 steps
    assert find_gaps(RunDirectory(run), [1], [10]) == [
        "no checkpoint of seed 0",
        "the last step that every seed keeps is 10 of 20",
    ]
    text = markdown([replace(small_arm(), gaps=["no checkpoint of seed 0"])])
    assert "**vanilla is incomplete: no checkpoint of seed 0.**" in text and "incomplete" not in markdown([small_arm()])


def test_the_checkpoints_of_a_run_are_those_that_all_seeds_have(run: Path):
    steps = {seed: [one.step for one in kept] for seed, kept in shared_checkpoints(RunDirectory(run), "all").items()}
    assert steps == {0: [10, 20], 1: [10, 20]}
    last = shared_checkpoints(RunDirectory(run), "last")
    assert [[one.step for one in kept] for kept in last.values()] == [[20], [20]]


def test_the_command_writes_tables_and_pictures(run: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(arms, "evaluate", partial(evaluate, max_steps=9, batch_size=50))
    out = tmp_path / "out"
    words = [f"runs=[/red]={run}", f"out={out}", "repetitions=1", "sampling_steps=2"]  # ends a colour for the terminal
    assert main(words) is None
    assert sorted(each.name for each in out.iterdir()) == ["modality.json", "modality.md", "modality.png", "paths.png"]
    (arm,) = json.loads((out / "modality.json").read_text())["arms"]
    assert np.shape(arm["counts"]) == (2, 2, 4, 3) and np.sum(arm["counts"]) == 16
    assert arm["demonstrated"] == [42, 42, 0]
    text = (out / "modality.md").read_text()
    assert text in capsys.readouterr().out and "repetitions=1 (published: 50)" in text
    assert "the first run has noise" not in text
    with pytest.raises(ValueError, match="already has a modality.json"):
        main(words)
    file = tmp_path / "knn/config.yaml"
    shutil.copytree(run, file.parent)
    file.write_text(file.read_text().replace("name: vanilla", "name: knn"))
    assert main([f"runs={file.parent}", f"out={tmp_path / 'other'}", *words[2:], "checkpoints=last"]) is None
    assert "the first run has noise=knn (published: vanilla)" in (tmp_path / "other/modality.md").read_text()


def test_each_run_under_each_sampler_as_if_it_were_the_only_one(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(arms, "evaluate", partial(evaluate, max_steps=9, batch_size=50))

    used = []
    monkeypatch.setattr(arms, "load_agent", lambda *given: used.append(given[1]) or load_agent(*given))

    def result(sampler):
        words = [f"runs={run}", f"out={tmp_path / sampler}", "repetitions=1", "sampling_steps=2", "checkpoints=last"]
        assert main([*words, f"sampler={sampler}"]) is None
        return json.loads((tmp_path / sampler / "modality.json").read_text())["arms"]

    both, (alone,) = result("ddim,renoise"), result("renoise")
    assert used == [Solver(name, 2) for name in ("ddim", "ddim", *["renoise"] * 4)]  # two seeds each
    assert [arm["name"] for arm in both] == [f"{run.name} ddim2", f"{run.name} renoise2"]
    assert both[1]["difference_to"] == both[0]["name"] and alone["difference_to"] is None
    assert all(both[1][key] == alone[key] for key in ("coverage", "counts", "seeds", "steps"))


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "runs= is missing"),
        (["runs={tmp}"], "so it is not a run"),
        (["runs={run},{run}"], "given twice"),
        (["runs={run}", "repetitions=0"], "repetitions=0"),
        (["runs={run}", "checkpoints=best"], "choose all or last"),
        (["runs={run}", "sampler=warp"], "warp"),
        (["runs={run}", "sampler=ddim,ddim"], "named twice"),
        (["runs={run}", "sampling_steps=101"], "101"),
        (["runs={empty}"], "have none at the same step"),
        (["runs={lost}"], "absent.zarr"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(run: Path, tmp_path: Path, words, message):
    empty, lost = tmp_path / "empty", tmp_path / "lost"
    for directory, data in ((empty, "null"), (lost, "absent.zarr")):
        directory.mkdir()
        config = (run / "config.yaml").read_text().replace("data: null", f"data: {data}")
        (directory / "config.yaml").write_text(config)
    (lost / "seed_0").symlink_to(run / "seed_0")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    given = [word.format(run=run, tmp=nothing, empty=empty, lost=lost) for word in words]
    with pytest.raises(ValueError, match=message):
        main([*given, f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
