"""Training, evaluation and resume through the real command line, on a store of a hundred steps."""

import fcntl
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import yaml
import zarr

from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.rows import read_rows
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks.pusht import PushT
from immiscible_policy.training.workers import in_thread
from tests.training.helpers import ROOT, command, here, refused, tree, write_small_store

FAST = (
    "experiment=debug",
    "threads=1",
    "precision=fp32",
    "episodes=1",
    "steps=20",
    "checkpoint_every=5",
    "eval_every=20",
)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """One uninterrupted run of one seed."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    result = here("train_policy.py", *FAST, "noise=knn", "k=2", "seed=1", f"data={store}", f"out={out}")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def weights(run, seed=1):
    checkpoint = RunDirectory(run).seed(seed).newest()
    return {name: (checkpoint.path / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")}


def test_a_run_directory_holds_what_is_promised(finished):
    out, printed = finished
    assert printed.splitlines()[0] == f"out={out}"
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["noise"]["name"], config["noise"]["k"], config["steps"]) == ("knn", 2, 20)
    seed = out / "seed_1"
    assert sorted(path.name for path in (seed / "checkpoints").iterdir()) == [
        "step_000005", "step_000010", "step_000015", "step_000020",
    ]  # fmt: skip
    header = (seed / "episodes.csv").read_text().splitlines()[0]
    assert header == "checkpoint,start,seed,success,max_coverage,final_coverage,max_reward,steps"
    (row,) = read_rows(seed / "episodes.csv", PushT.metrics)
    assert (row.checkpoint, row.start, row.seed, row.steps) == (20, 100_000, 1, 300)
    steps = [json.loads(line)["step"] for line in (seed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20, 20]
    summary = json.loads((out / "summary.json").read_text())
    for metric in ("coverage", "reward"):
        for kind in ("last10", "max"):
            assert {"mean", "low", "high"} <= summary["pooled"][metric][kind].keys()
    assert summary["pooled"]["coverage"]["max"]["mean"] == row.metrics["coverage"]
    assert (out / "summary.md").read_text().strip() in printed
    assert (out / "coverage.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "provenance.json").read_text())["data"]["episodes"] == 4


@pytest.mark.slow
def test_the_same_command_gives_the_same_weights(finished, store, tmp_path):
    out, _ = finished
    words = (*FAST, "noise=knn", "k=2", "seed=1", f"data={store}", f"out={tmp_path / 'a'}")
    again = command("train_policy.py", *words)  # in a process of its own
    assert again.returncode == 0 and weights(tmp_path / "a") == weights(out)


def several(store, out):
    """The words of the same training with two seeds."""
    return (*FAST, "noise=knn", "k=2", "seed=0..1", f"data={store}", f"out={out}")


@pytest.fixture(scope="module")
def seeds(store, tmp_path_factory):
    """Two seeds at once, each in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "seeds"
    result = here("train_policy.py", *several(store, out), "parallel=2")
    assert result.returncode == 0, result.stderr
    return out


def test_a_selector_that_changes_nothing_is_named(store, tmp_path):
    """c2ot among four samples keeps the noise of each; KNN does not."""
    for noise, said in (("c2ot", True), ("knn", False)):
        done = here("train_policy.py", *FAST, f"noise={noise}", f"data={store}", f"out={tmp_path / noise}")
        assert done.returncode == 0, done.stderr
        line = f"noise={noise} changed no noise: this is a training with noise=vanilla; give larger batches"
        assert (line in done.stdout) == said


def test_seeds_in_parallel_equal_a_seed_alone(finished, seeds):
    assert weights(seeds, 1) == weights(finished[0], 1) != weights(seeds, 0)
    assert set(json.loads((seeds / "summary.json").read_text())["seeds"]) == {"0", "1"}


@pytest.mark.slow
def test_seeds_side_by_side_in_threads_equal_seeds_in_processes(finished, store, tmp_path):
    """As several seeds share a GPU: one process, a thread for each, one of which fails."""
    out, _ = finished
    words = [*FAST, "noise=knn", "k=2", "seed=1,2,3", f"data={store}", f"out={tmp_path}"]
    config = compose_config([*words, "wandb=offline"])
    recipe, events = RobotRecipe.prepare(config), []
    RunDirectory(tmp_path).begin(config.to_yaml(), {})
    (tmp_path / "seed_2").mkdir()
    with open(tmp_path / "seed_2" / ".lock", "w") as lock, ThreadPoolExecutor(3) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        train = partial(in_thread, recipe, listen=events.append)
        failures = list(pool.map(train, map(RunDirectory(tmp_path).seed, (1, 2, 3))))
    assert failures[0] is failures[2] is None and weights(tmp_path, 1) == weights(out, 1) != weights(tmp_path, 3)
    assert failures[1].startswith("seed 2 failed: ") and "another process" in failures[1]
    assert "another process" in (tmp_path / "seed_2" / "log.txt").read_text()
    assert {event["seed"] for event in events if event["event"] == "finished"} == {1, 3}


def test_a_selector_changes_what_is_learned_and_k_of_one_is_vanilla(store, tmp_path):
    for name, words in {
        "vanilla": ["noise=vanilla"],
        "knn1": ["noise=knn", "k=1"],
        "knn2": ["noise=knn"],
    }.items():
        result = here("train_policy.py", *FAST, "seed=1", *words, f"data={store}", f"out={tmp_path / name}")
        assert result.returncode == 0, result.stderr
    runs = {name: weights(tmp_path / name)["model"] for name in ("vanilla", "knn1", "knn2")}
    assert runs["vanilla"] == runs["knn1"] != runs["knn2"]


LONG = (*FAST[:-3], "steps=240", "checkpoint_every=20", "eval_every=240", "noise=knn", "k=2", "seed=1")


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    """Weights after a run long enough to be killed in its middle."""
    out = tmp_path_factory.mktemp("runs") / "long"
    assert here("train_policy.py", *LONG, f"data={store}", f"out={out}").returncode == 0
    return weights(out)


def kill_and_resume(store, out, delays):
    """Kill a training -9, each time a random moment after a new checkpoint, then let it finish by its directory alone.

    Returns:
        The step at which it was resumed last.
    """
    words = [*LONG, f"data={store}", f"out={out}", "resume=true"]
    for delay in delays:
        before = newest(out)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train_policy.py"), *words], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        while newest(out) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
    result = here("train_policy.py", f"resume={out}")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (out / "seed_1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(5, 245, 5))
    (step,) = re.findall(r"resume seed 1 at step (\d+)", result.stdout)
    return int(step)


def newest(out):
    """Step of the newest complete checkpoint, 0 before the first."""
    actual = sorted((out / "seed_1" / "checkpoints").glob("step_*"))
    return int(actual[-1].name.removeprefix("step_")) if actual else 0


def test_killed_and_resumed_equals_uninterrupted(uninterrupted, store, tmp_path):
    step = kill_and_resume(store, tmp_path / "a", [0.1])
    assert 20 <= step < 240 and step % 20 == 0
    assert weights(tmp_path / "a") == uninterrupted


@pytest.mark.slow
def test_killed_at_twenty_random_moments_equals_uninterrupted(uninterrupted, store, tmp_path):
    moments, steps = random.Random(1), set()
    for number in range(10):
        steps.add(kill_and_resume(store, tmp_path / str(number), [moments.uniform(0, 0.7) for _ in range(2)]))
        assert weights(tmp_path / str(number)) == uninterrupted
    assert len(steps) >= 3


def test_a_finished_run_is_left_alone(finished, store):
    out, _ = finished
    before = tree(out)
    words = (*FAST, "noise=knn", "k=2", "seed=1", f"data={store}", f"out={out}")
    result = here("train_policy.py", *words, "resume=true")
    assert result.returncode == 0 and "finished already" in result.stdout
    assert tree(out) == before
    assert "resume=true" in refused(here("train_policy.py", *words))
    changed = refused(here("train_policy.py", *words, "lr=0.005", "resume=true"))
    assert "lr=0.005 differs" in changed and "lr=0.001" in changed
    assert "continues with the run's own options" in refused(here("train_policy.py", f"resume={out}", "lr=0.005"))
    assert "neither true nor false nor the directory of a run" in refused(here("train_policy.py", "resume=nowhere"))
    assert "has 20 steps; use resume=" in refused(here("train_policy.py", f"resume={out}", "steps=19"))
    assert tree(out) == before


@pytest.mark.slow
def test_one_seeds_crash_neither_hides_nor_stops_the_others(seeds, store, tmp_path):
    shutil.copytree(seeds, tmp_path / "run")
    words = (*several(store, tmp_path / "run"), "parallel=1")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "run" / f"seed_{seed}" / "checkpoints")
    with open(tmp_path / "run" / "seed_0" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(here("train_policy.py", *words, "resume=true"))
    assert "seed 0 failed" in line and "another process" in line and "log.txt" in line
    assert weights(tmp_path / "run", 1) == weights(seeds, 1)
    assert here("train_policy.py", *words, "resume=true").returncode == 0
    assert weights(tmp_path / "run", 0) == weights(seeds, 0)


def test_evaluation_of_a_checkpoint_repeats_what_training_recorded(finished, tmp_path):
    out, csv = finished[0], tmp_path / "rows.csv"
    result = here("eval_policy.py", f"run={out}", "checkpoints=last", "episodes=1", f"out={csv}")
    assert result.returncode == 0, result.stderr
    assert read_rows(csv, PushT.metrics) == read_rows(out / "seed_1" / "episodes.csv", PushT.metrics)


def test_fresh_starts_enter_the_summary(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    result = here("eval_policy.py", f"run={out}", "checkpoints=best", "starts=fresh", "episodes=2")
    assert result.returncode == 0, result.stderr
    assert "max_fresh" in json.loads((out / "summary.json").read_text())["pooled"]["coverage"]
    fresh = read_rows(out / "seed_1" / "fresh.csv", PushT.metrics)
    assert [row.start for row in fresh] == [200_000, 200_001]
    words = (f"run={out}", "checkpoints=best", "starts=fresh", "episodes=1")
    other = here("eval_policy.py", *words, "sampling_steps=1")
    assert "with sampling_steps=, are not added to it" in other.stdout
    assert read_rows(out / "seed_1" / "fresh.csv", PushT.metrics) == fresh
    assert "is a policy for task=pusht" in refused(here("eval_policy.py", *words, "task=avoid"))
    assert "is scored in its simulator; leave data= out" in refused(here("eval_policy.py", *words, f"data={out}"))


def test_starts_that_a_checkpoint_was_chosen_on_are_not_held_out(finished, tmp_path):
    """As after a training with `starts=fresh`."""
    out = shutil.copytree(finished[0], tmp_path / "run")
    episodes = out / "seed_1" / "episodes.csv"
    episodes.write_text(episodes.read_text().replace(",100000,", ",200000,"))
    result = here("eval_policy.py", f"run={out}", "checkpoints=best", "starts=fresh", "episodes=2")
    assert result.returncode == 0, result.stderr
    assert "no max_fresh is added to the run: checkpoints were chosen on 1 of these starts" in result.stdout
    assert not (out / "seed_1" / "fresh.csv").exists()


def test_a_run_whose_name_has_a_comma_is_resumed(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "b, c")
    again = here("train_policy.py", f"resume={out}")
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr


def test_what_a_training_does_not_use_is_refused(tmp_path):
    line = refused(here("train_policy.py", "method=flow", "diffusion_steps=50", f"out={tmp_path / 'a'}"))
    assert "diffusion_steps=50: this training does not use it; leave it out" in line
    line = refused(here("train_policy.py", "method=regression", "sampling_steps=3,9", f"out={tmp_path / 'a'}"))
    assert "sampling_steps=3,9: no arm uses it; leave it out" in line


def test_an_interrupted_evaluation_keeps_the_held_out_episodes_of_what_it_finished(seeds, tmp_path, monkeypatch):
    out, measured = shutil.copytree(seeds, tmp_path / "run"), []

    def interrupted(*arguments, **more):
        if measured:
            raise KeyboardInterrupt
        measured.append(evaluate(*arguments, **more))
        return measured[0]

    monkeypatch.setattr("immiscible_policy.commands.eval_policy.evaluate", interrupted)
    assert here("eval_policy.py", f"run={out}", "checkpoints=last", "starts=fresh", "episodes=2").returncode
    assert read_rows(out / "seed_0" / "fresh.csv", PushT.metrics) == measured[0]
    assert not (out / "seed_1" / "fresh.csv").exists()


def test_a_run_compared_with_itself_shows_no_difference(finished, tmp_path):
    result = here("compare_policies.py", f"a={finished[0]}", f"b={finished[0]}", f"out={tmp_path / 'c'}")
    assert result.returncode == 0, result.stderr
    actual = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert all(entry["difference"]["estimate"] == 0 for entry in actual["results"]) and actual["paired"]
    assert (tmp_path / "c" / "comparison.png").exists() and "No setting differs" in result.stdout


def test_a_checkpoint_becomes_a_video_of_the_recorded_episode(finished, tmp_path):
    checkpoint = finished[0] / "seed_1" / "checkpoints" / "step_000020"
    (row,) = read_rows(finished[0] / "seed_1" / "episodes.csv", PushT.metrics)
    result = here(
        "render_rollout.py", f"checkpoint={checkpoint}", f"out={tmp_path / 'a.mp4'}", "episodes=1", "sampling_steps=2"
    )
    assert result.returncode == 0, result.stderr
    assert f"coverage {row.metrics['coverage']:.3f}" in result.stdout
    assert f"{row.steps + 1} frames" in result.stdout and (tmp_path / "a.mp4").stat().st_size > 1000


def test_dry_run_prints_the_plan_and_writes_nothing(store, tmp_path):
    before = tree(tmp_path)
    result = here("train_policy.py", *FAST, "noise=knn", "k=8", "seed=0..2", f"data={store}",
                     f"out={tmp_path / 'new'}", "dry_run=true")  # fmt: skip
    assert result.returncode == 0 and tree(tmp_path) == before and not (tmp_path / "new").exists()
    for message in ("k=8", "seeds:  0, 1, 2", "4 episodes", "20 steps of 32 windows", "1 evaluations of 1 starts"):
        assert message in result.stdout


def break_store(path, how):
    if how == "missing":
        return path / "nowhere.zarr"
    if how == "truncated":
        next((path / "data" / "action").glob("[0-9]*")).unlink()
    if how == "nan":
        zarr.open_group(path, mode="r+")["data/state"][7, 2] = np.nan
    if how == "episode_ends":
        zarr.open_group(path, mode="r+")["meta/episode_ends"][-1] = 95
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "nowhere.zarr"),
        ("truncated", "data/action"),
        ("nan", "data/state"),
        ("episode_ends", "95"),
    ],
)
def test_unusable_stores_are_refused_before_anything_is_created(tmp_path, how, message):
    path = break_store(write_small_store(tmp_path / "s.zarr"), how)
    before = tree(tmp_path)
    line = refused(here("train_policy.py", *FAST, f"data={path}", f"out={tmp_path / 'run'}"))
    assert message in line and tree(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stepz=3"], "steps"),
        (["noise=kn"], "knn"),
        (["k=2"], "noise=vanilla has no k"),
        (["steps=-1"], "steps=-1"),
        (["lr=fast"], "lr=fast"),
        (["seed=2..0"], "0..2"),
        (["device=cuda"], "device=cuda"),
        (["horizon=10"], "horizon=10"),
        (["action_steps=16"], "action_steps=16"),
        (["method=diffusion", "sampling_steps=200"], "sampling_steps=200"),
        (["starts=best"], "starts=best"),
        (["data=/dev/null"], "/dev/null"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(words, message, store, tmp_path):
    data = [] if any(word.startswith("data=") for word in words) else [f"data={store}"]
    line = refused(here("train_policy.py", *data, f"out={tmp_path / 'run'}", *words))
    assert message in line and not list(tmp_path.iterdir())


def test_out_that_is_in_use_is_refused(store, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line = refused(here("train_policy.py", *FAST, f"data={store}", f"out={tmp_path}"))
    assert "other files" in line and tree(tmp_path) == {"notes.txt": b"mine"}


def test_changed_data_is_refused_on_resume(tmp_path):
    path = write_small_store(tmp_path / "s.zarr")
    words = (*FAST, f"data={path}", f"out={tmp_path / 'run'}")
    assert here("train_policy.py", *words).returncode == 0
    checkpoint = RunDirectory(tmp_path / "run").seed(0).newest()
    (checkpoint.path / "metadata.json").unlink()
    zarr.open_group(path, mode="r+")["data/action"][3, 0] += 1
    assert "has changed" in refused(here("train_policy.py", *words, "resume=true"))


def test_an_action_that_leaves_nothing_to_learn_is_noted_in_the_plan(store, tmp_path):
    path = shutil.copytree(store, tmp_path / "far.zarr")
    zarr.open_group(path, mode="r+")["data/action"][5, 1] = 1e38
    plan = here("train_policy.py", *FAST, f"data={path}", f"out={tmp_path / 'run'}", "dry_run=true").stdout
    assert "note:   data/action[1] is 1e+38 at step 5 (episode 0, its step 5); half of them lie within" in plan


def test_a_corrupt_checkpoint_is_named(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    file = RunDirectory(copy).seed(1).newest().path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    line = refused(here("eval_policy.py", f"run={copy}", "episodes=1", "checkpoints=last"))
    assert "ema.safetensors" in line and "corrupt" in line


SCRIPTS = ("train_policy.py", "eval_policy.py", "eval_modality.py", "compare_policies.py", "render_rollout.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script):
    result = here(script, "--help")
    assert result.returncode == 0 and script in result.stdout and result.stderr == ""
