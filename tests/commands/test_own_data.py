"""A robot of one's own, seven joints and two cameras: trained, scored on held-out episodes, compared, and it acts."""

import json
import shutil

import numpy as np
import pytest
import torch

from immiscible_policy import load_policy
from immiscible_policy.demos import open_store, split_episodes, write_store
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.compare import compare
from immiscible_policy.store.run import RunDirectory
from tests.demos.arm import arm_arrays, write_lerobot, zipped
from tests.training.helpers import here, refused, seeds_in_turn

SMALL = ("experiment=debug", "task=none", "down_dims=[16,32]", "step_embed_dim=16", "threads=1", "precision=fp32",
         "steps=4", "checkpoint_every=2", "eval_every=2", "wandb=disabled", "keep=all")  # fmt: skip


def train(*words):
    result = here("train_policy.py", *SMALL, *words)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The arm's store, and a run with plain noise and one with KNN."""
    place = tmp_path_factory.mktemp("arm")
    write_store(place / "arm.zarr", *arm_arrays(episodes=20))
    for noise in ("vanilla", "knn"):
        words = (f"data={place / 'arm.zarr'}", "obs=qpos,ee_pose", f"noise={noise}", "seed=0,1", f"out={place / noise}")
        with seeds_in_turn():
            (place / f"{noise}.txt").write_text(train(*words))
    return place


def test_rows_are_the_held_out_episodes_and_metrics_say_what_they_are_means_of(place):
    _, held_out = split_episodes(20, 0.1)
    run = RunDirectory(place / "vanilla")
    for seed in (0, 1):
        header, *lines = (run.path / f"seed_{seed}/episodes.csv").read_text().splitlines()
        assert header == "checkpoint,start,seed,energy_score,action_error,steps" and len(lines) == 4
        rows = run.episodes()[seed]
        assert {row.start for row in rows} == set(held_out.tolist())
        last = [row for row in run.seed(seed).metrics() if "energy_score" in row][-1]
        mean = np.mean([row.metrics["energy_score"] for row in rows if row.checkpoint == 4])
        assert last["energy_score"] == pytest.approx(mean)
        assert {f"validation/action_error/{i}" for i in range(7)} < last.keys() and last["validation/loss"] > 0
        assert 0.5 < last["validation/r2"] < 1  # the made-up arm goes where its joints say
    assert {"energy_score", "action_error"} == json.loads((run.path / "summary.json").read_text())["pooled"].keys()


def test_the_plan_shows_the_range_of_every_number(place):
    text = (place / "vanilla.txt").read_text()
    action = open_store(place / "arm.zarr")["action"]
    spans = ", ".join(f"{low:.4g}..{high:.4g}" for low, high in zip(action.min(0), action.max(0), strict=True))
    assert f"action (actions): {spans}" in text and "constant 0.3" in text and "normalize=all" in text
    assert "2 evaluations of 2 held-out episodes" in text


def test_runs_are_compared_and_reported_on_paired_episodes(place, tmp_path):
    page = tmp_path / "report.html"
    done = here("compare_policies.py", f"a={place / 'knn'}", f"b={place / 'vanilla'}", f"report={page}")
    assert done.returncode == 0, done.stderr
    assert "energy_score, last " in done.stdout and "Paired by seed and start" in done.stdout
    assert "energy score" in page.read_text() and "coverage" not in page.read_text()


def test_an_evaluation_repeats_the_scores_of_training(place, tmp_path):
    (tmp_path / "[").mkdir()
    (tmp_path / "[/red]").symlink_to(place / "vanilla")  # ends a colour for the terminal
    done = here("eval_policy.py", f"run={tmp_path / '[/red]'}", f"out={tmp_path / 'rows.csv'}")
    assert done.returncode == 0 and "2 held-out episodes" in done.stdout, done.stderr
    lines = [(place / f"vanilla/seed_{seed}/episodes.csv").read_text().splitlines() for seed in (0, 1)]
    assert (tmp_path / "rows.csv").read_text().splitlines() == lines[0] + lines[1][1:]
    shutil.move(place / "arm.zarr", tmp_path / "kept.zarr")
    write_store(place / "arm.zarr", *arm_arrays(episodes=20, seed=1))
    assert "has changed since training began" in refused(here("eval_policy.py", f"run={place / 'vanilla'}"))
    moved = here("eval_policy.py", f"run={place / 'vanilla'}", f"data={tmp_path / 'kept.zarr'}", "checkpoints=last")
    assert moved.returncode == 0 and "2 held-out episodes" in moved.stdout, moved.stderr
    shutil.rmtree(place / "arm.zarr")
    shutil.move(tmp_path / "kept.zarr", place / "arm.zarr")


def test_the_trained_policy_acts(place):
    policy = load_policy(place / "vanilla/seed_0", seed=0)
    action = policy.act({"qpos": np.zeros(7), "ee_pose": np.zeros(5)})
    assert action.shape == (7,) and np.isfinite(action).all()


def test_what_needs_an_environment_is_refused(place, tmp_path):
    checkpoint = f"checkpoint={place / 'vanilla/seed_0/checkpoints/step_000004'}"
    line = refused(here("render_rollout.py", checkpoint, f"out={tmp_path / 'a.mp4'}"))
    assert "task=none has no environment to render a policy in" in line
    for words in (["starts=fresh"], ["episodes=3"]):
        assert "is scored on the episodes that its run held out" in refused(here("eval_policy.py", checkpoint, *words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", [pytest.param("v2.1", marks=pytest.mark.slow), "v3.0"])
def test_a_data_set_of_lerobot_with_two_cameras_trains(tmp_path, version):
    pytest.importorskip("pyarrow")
    write_lerobot(tmp_path / "set", *arm_arrays(episodes=3, steps=12, side=16), version)
    cameras = ("observation.images.wrist", "observation.images.front")
    seen = ",".join(["observation.qpos", *cameras])
    pictures = ("crop=12", "encoder_width=16", "shared_encoder=true")
    text = train(f"data={tmp_path / 'set'}", f"obs={seen}", *pictures, f"out={tmp_path / 'run'}")
    assert "3 episodes" in text and "1 held-out episodes" in text
    policy = load_policy(tmp_path / "run")
    frame = np.zeros((16, 16, 3), np.uint8)
    assert policy.act({"observation.qpos": np.zeros(7), **dict.fromkeys(cameras, frame)}).shape == (7,)


def test_a_store_in_a_zip_archive_is_the_same_data(place, tmp_path):
    archive = zipped(place / "arm.zarr", tmp_path / "arm.zip", "arm.zarr/")
    text = train(f"data={archive}", "obs=qpos,ee_pose", "dry_run=true", f"out={tmp_path / 'run'}")
    content = [line for line in (place / "vanilla.txt").read_text().splitlines() if line.startswith("data:")][0]
    assert content.split("content ")[1] in text


def ranges(place, *words):
    words = [*SMALL, f"data={place / 'arm.zarr'}", "obs=qpos", "train_episodes=3", f"out={place / 'new'}", *words]
    recipe = RobotRecipe.prepare(compose_config(words))
    policy = recipe.policy(0)
    return recipe, policy.action.normalize(recipe.loaded.training.action), policy


def test_normalisation_is_fitted_over_the_whole_store_or_the_training_episodes(place):
    action = open_store(place / "arm.zarr")["action"]
    _, seen, policy = ranges(place)
    assert seen.abs().max() < 1  # three of twenty episodes do not reach the ends
    for values, end in ((action.min(0), -1), (action.max(0), 1)):
        assert policy.action.normalize(policy.action.scale.new_tensor(values)).numpy() == pytest.approx(end, abs=1e-5)
    _, seen, _ = ranges(place, "normalize=train")
    assert seen.amin((0, 1)).numpy() == pytest.approx(-1, abs=1e-5) and seen.amax((0, 1)).numpy() == pytest.approx(
        1, abs=1e-5
    )


def test_a_constant_action_is_acted_as_it_is(tmp_path):
    """Bounds one unit apart, as elsewhere, would let the robot move by them."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (60, 4)).astype(np.float32)
    action[:, 1], action[:, 2], action[:, 3] = 0.2, 12_000, 0
    store = write_store(tmp_path / "a.zarr", {"qpos": rng.normal(size=(60, 3)), "action": action}, [30, 60])
    words = [*SMALL, f"data={store}", "obs=qpos", f"out={tmp_path / 'new'}"]
    policy = RobotRecipe.prepare(compose_config(words)).policy(0)
    assert policy.action.normalize(torch.from_numpy(action))[:, 1:].abs().max() < 0.01
    ends = policy.action.unnormalize(torch.tensor([[-1.0], [1.0]]).expand(2, 4)).numpy()
    np.testing.assert_allclose(ends[:, 0], [action[:, 0].min(), action[:, 0].max()], atol=1e-6)
    np.testing.assert_allclose(ends[:, 1:], [[0.2, 12_000, 0]] * 2, rtol=1e-4, atol=1.1e-4)


def test_the_right_edge_of_the_human_demonstrations_can_be_commanded(human_store):
    """Their actions reach x = 511, those of the 90 episodes of the published training only 487."""
    words = [f"data={human_store}", "train_episodes=90", "validation=0.02", "device=cpu"]
    reached = {
        fitted: float(RobotRecipe.prepare(compose_config([*words, f"normalize={fitted}"])).loaded.action.high[0])
        for fitted in ("all", "train")
    }
    assert reached == {"all": 511, "train": 487}


def test_a_number_that_does_not_vary_is_moved_to_0_and_back(place):
    recipe, _, policy = ranges(place)
    normal = policy.observer.normalizer
    standing = normal.normalize(recipe.loaded.training.obs)[..., 1]
    assert standing.abs().max() < 1e-6 and float(normal.scale[1]) == 1


def test_lower_is_better_in_every_verdict(place):
    run = RunDirectory(place / "vanilla")
    comparison = compare(RunDirectory(place / "knn"), run)
    for result in comparison.results:
        assert result.lower_is_better and result.a_is_better == (result.difference.estimate < 0)
        assert result.over_episodes.wins + result.over_episodes.losses + result.over_episodes.ties == 4
    summary = json.loads((run.path / "summary.json").read_text())
    for seed, rows in run.episodes().items():
        scores = {
            step: np.mean([row.metrics["energy_score"] for row in rows if row.checkpoint == step]) for step in (2, 4)
        }
        best = summary["seeds"][str(seed)]["energy_score"]["max"]
        assert best["checkpoint"] == [min(scores, key=scores.__getitem__)]
        assert best["mean"] == pytest.approx(min(scores.values()))
