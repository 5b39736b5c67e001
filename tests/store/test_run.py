"""A run directory says what it holds and what is missing; nobody else has to know what it is called."""

import fcntl
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from immiscible_policy.cli import CommandError
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.checkpoint import CheckpointError
from immiscible_policy.store.rows import append_rows
from immiscible_policy.store.run import RunDirectory, label_runs, named_runs, run_of, runs_in
from tests.results.runs import episode, write_run

TASK = "task: {name: pusht}\n"
PLAN = {"seed": "0..2", "steps": 1500, "eval_every": 500, "starts": "100..105", "episodes": 6}


def half(seed: int, step: int, start: int) -> float:
    return 0.5


def planned(directory: Path, **written) -> RunDirectory:
    """A run whose options say what it should have."""
    run = write_run(directory, half, **written)
    (run.path / "config.yaml").write_text(yaml.safe_dump(run.config | PLAN))
    return run


def save(run: RunDirectory, seed: int, step: int, **metadata) -> None:
    tensors = {name: {"w": torch.zeros(1)} for name in ("model", "ema", "optimizer")}
    run.seed(seed).save({"step": step, "seed": seed} | metadata, tensors)


def test_a_run_is_read_by_seed(tmp_path: Path) -> None:
    run = write_run(tmp_path, half, seeds=(10, 2), steps=(500,), starts=(1,), noise={"name": "knn", "k": 2})
    run.seed(2).append_fresh([episode(2, 500, 7, 0.5)])
    (tmp_path / "seed_3").mkdir()
    assert run.config == {"noise": {"name": "knn", "k": 2}, "task": {"name": "pusht"}}
    assert run.seeds() == [2, 3, 10]
    assert run.episodes() == {2: [episode(2, 500, 1, 0.5)], 10: [episode(10, 500, 1, 0.5)]}
    assert run.fresh() == {2: [episode(2, 500, 7, 0.5)]} and run.seed(3).episodes() == []


def test_a_run_is_named_by_its_path_whatever_is_in_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my runs" / "b, c=1", half, seeds=(0,), steps=(500,))
    assert [each.path for each in named_runs(str(run.path)).values()] == [run.path]
    other = write_run(tmp_path / "other", half, seeds=(0,), steps=(500,))
    assert len(named_runs(f"{other.path},{run.path.parent}")) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        RunDirectory(tmp_path / "absent").episodes()
    (tmp_path / "arm").mkdir()
    with pytest.raises(ValueError, match="has no config.yaml"):
        RunDirectory(tmp_path).episodes()
    (tmp_path / "arm" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="it contains the runs arm: give one of them"):
        RunDirectory(tmp_path).episodes()
    for content, message in (
        ("", "config.yaml is damaged .it has no keys and values.; restore it, or train the run again"),
        ("{", "config.yaml is damaged"),
        ("seed: [0]\n", "names no task"),
        (TASK, "no evaluated episodes"),
    ):
        (tmp_path / "arm" / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            RunDirectory(tmp_path / "arm").episodes()
    (tmp_path / "arm" / "seed_x").mkdir()
    for name, number in (("seed_x", "seed_0"), ("seed_00", "seed_0"), ("seed_01", "seed_1"), ("seed_²", "seed_0")):
        (tmp_path / "arm" / "seed_x").rename(tmp_path / "arm" / name)
        with pytest.raises(ValueError, match=f"{name}: the name must be {number}, or another number"):
            RunDirectory(tmp_path / "arm").seeds()
        (tmp_path / "arm" / name).rename(tmp_path / "arm" / "seed_x")


def test_a_checkpoint_lies_where_its_metadata_say(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", half)
    save(run, 0, 500)
    place = run.seed(0).checkpoint_path(500)
    for name in ("step_foo", "step_500"):
        shutil.copytree(place, place.with_name(name))
        with pytest.raises(ValueError, match=f"{name}: the name must be step_000[50]00, or another number"):
            run.seed(0).newest()
        shutil.rmtree(place.with_name(name))
    shutil.copytree(place, run.seed(0).checkpoint_path(600))
    with pytest.raises(CheckpointError, match="step_000600 holds step 500 of seed 0: it was moved there"):
        run.seed(0).newest()
    shutil.rmtree(run.seed(0).checkpoint_path(600))
    shutil.copytree(place, run.seed(1).checkpoint_path(500))
    with pytest.raises(CheckpointError, match="seed_1/checkpoints/step_000500 holds step 500 of seed 0"):
        run.checkpoints()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "steps: 1.0e400\n" + TASK, "config.yaml is damaged .steps is '1.0e400'"),
        ("config.yaml", TASK + "steps: 1000000000000\neval_every: 1\n", "plans 1,000,000,000,000 evaluations"),
        ("config.yaml", TASK + "starts: legacy\nepisodes: 100000000000\n", "needs 100,000 or fewer"),
        ("config.yaml", TASK + "starts: legacy\n", "episodes=0: needs 1 or more"),
        ("config.yaml", "task: &a [1]\nseed: *a\n", "config.yaml is damaged .it has aliases"),
        ("provenance.json", "[]", "provenance.json is damaged .it has no keys and values"),
        ("provenance.json", '{"data": 3}', "provenance.json is damaged .data is '3'"),
        ("provenance.json", '{"data": {"content_hash": 3}}', "provenance.json is damaged .content_hash is '3'"),
        ("seed_0/metrics.jsonl", '{"step": "1"}\n', "metrics.jsonl, line 1 is damaged"),
        ("seed_0/metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl, line 1 is damaged"),
        ("seed_0/metrics.jsonl", '{"step": 1, "noise/cost": "x"}\n', "metrics.jsonl, line 1 is damaged"),
        ("seed_0/metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl is damaged"),
        ("seed_0/episodes.csv", b"\xff\xfe\n", "episodes.csv is damaged"),
        ("config.yaml", TASK + "steps: 400\n", "episodes.csv, line 2 is of step 500, the training has 400"),
        ("summary.json", "3", "summary.json is damaged"),
    ],
)
def test_a_hostile_file_is_named(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    run = write_run(tmp_path, half)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        run.missing(), run.origin, run.seed(0).metrics(), run.summary  # noqa: B018
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_missing_of_the_plan_is_counted_once(tmp_path: Path) -> None:
    whole = planned(tmp_path / "whole")
    assert (
        not any(whole.missing()) and whole.missing([0, 7]).seeds == [7] and whole.missing([0, 7]).unfinished == {7: 0}
    )
    less = planned(tmp_path / "less", seeds=(0,), starts=range(100, 104))
    less.seed(1).append_episodes(episode(1, step, start, 0.5) for step in (500, 1500) for start in range(100, 104))
    less.seed(2).append_episodes(episode(2, 500, start, 0.5) for start in range(100, 104))
    missing = less.missing()
    assert (missing.seeds, missing.starts) == ([], [104, 105])
    assert missing.steps == {1: [1000], 2: [1000, 1500]} and missing.unfinished == {2: 500}
    unplanned = write_run(tmp_path / "unplanned", half, seeds=(0, 1), steps=(10, 20))
    unplanned.seed(1).append_episodes([episode(1, 30, start, 0.5) for start in range(100, 106)])
    assert unplanned.missing().steps == {0: [30]} and unplanned.missing().unfinished == {0: 20}


def test_a_run_is_finished_that_has_its_last_checkpoints_and_a_summary(tmp_path: Path) -> None:
    run = planned(tmp_path)
    for seed in range(3):
        assert not run.is_finished() and not run.seed(seed).is_finished(1500)
        save(run, seed, 1500)
    assert not run.is_finished()
    run.write_summary({"pooled": {}}, "# text")
    assert run.is_finished() and run.summary == {"pooled": {}}
    assert not run.is_finished([0, 1, 2, 3]) and not run.is_finished(steps=2000)
    run.write_summary({"unfinished": {"2": 500}})  # written before the end
    assert not run.is_finished()
    run.forget_summary()
    assert not run.is_finished() and run.summary is None
    run.write_summary({})
    (run.path / "config.yaml").write_text("seed: 0..2\n")  # torn before its steps
    assert not run.is_finished() and run.is_finished(steps=1500)


def test_checkpoints_are_known_by_seed_and_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", half)
    for seed, step in ((1, 500), (1, 2_000_000), (10, 500)):
        save(run, seed, step)
    assert {seed: [kept.step for kept in of_seed] for seed, of_seed in run.checkpoints().items()} == {
        1: [500, 2_000_000], 10: [500]}  # fmt: skip
    newest = run.seed(1).newest()
    assert newest is not None and newest.step == 2_000_000 and run.seed(2).newest() is None
    assert run.seed(1).checkpoint(500).path == tmp_path / "run/seed_1/checkpoints/step_000500"
    with pytest.raises(CheckpointError, match="step 1000 was not kept"):
        run.seed(1).checkpoint(1000)
    place = run_of(newest.path)
    assert place is not None and (place.number, place.run.path) == (1, tmp_path / "run")
    assert run_of(tmp_path / "step_000500") is None


def test_a_seed_is_trained_by_one_process(tmp_path: Path) -> None:
    seed = write_run(tmp_path, half).seed(0)
    with seed.lock(), pytest.raises(CommandError, match="is being trained by another process"):
        with seed.lock():
            pass
    with seed.lock():
        pass


def test_a_run_begins_only_where_nothing_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.is_free and not run.exists
    run.path.mkdir()
    (run.path / ".config.yaml.x7").write_text("of a start that was cut short")
    (run.path / "provenance.json").write_text("{}")
    assert run.is_free
    (run.path / "notes.txt").write_text("mine")
    assert not run.is_free
    run.begin(TASK, {"command": "python"})
    assert run.exists and [result.name for result in runs_in(tmp_path)] == ["run"]
    with pytest.raises(CommandError, match="another training has just begun there; name another out="):
        RunDirectory(run.path).begin("task: other\n", {"command": "second"})
    assert run.config == {"task": {"name": "pusht"}} and run.provenance == {"command": "python"}


@pytest.mark.parametrize("config", [{"noise": {"name": "vanilla"}}, {"lr": 1}, {}])
def test_a_seed_of_another_training_is_refused_by_every_reader(tmp_path: Path, config: dict) -> None:
    """Its settings are those of its newest checkpoint; steps and settings of place may differ."""
    run = write_run(tmp_path / "run", half, steps=[500], lr=2, out="x")
    own = {"config": run.config | {"steps": 9, "out": "y"}, "data_hash": "c0ffee" * 8}
    save(run, 0, 500, **own)
    assert run.episodes().keys() == {0, 1, 2} and run.checkpoints().keys() == {0}
    save(run, 1, 500, **own | {"config": own["config"] | config, "data_hash": None if config else "decade" * 8})
    (run.path / "provenance.json").write_text(json.dumps({"data": {"content_hash": "c0ffee" * 8}}))
    key = next((key for key in ("lr", "noise") if key in config), "data of content decadedecade,")
    mixed = f"seed_1/checkpoints/step_000500 has {key} .*two trainings are mixed"
    for read in (run.episodes, run.fresh, run.checkpoints, run.missing):
        with pytest.raises(ValueError, match=mixed):
            read()
    save(run, 1, 600, **own)
    assert run.episodes()
    with pytest.raises(ValueError, match=mixed):  # older ones are evaluated too
        run.checkpoints()


def test_of_processes_that_add_episodes_one_waits_for_the_other(tmp_path: Path) -> None:
    seed = write_run(tmp_path, half, seeds=(0,)).seed(0)
    one, other = ([episode(0, 500, start, 0.5)] for start in (1, 2))
    with open(seed.path / ".fresh.csv.lock", "w") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(seed.append_fresh, one)
        time.sleep(0.1)
        append_rows(seed.path / "fresh.csv", other, seed.run.task.metrics)  # what the holder writes
        assert not waiting.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert seed.run.fresh() == {0: other + one}


def test_the_origin_names_no_place(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    data = {"path": "/some/where/demos.zarr", "content_hash": "c0ffee" * 8}
    run.begin("data: /some/where/demos.zarr\nlr: 1\nout: x\n", {"command": "python a.py out=/b/c", "data": data})
    assert run.origin == {"command": "python a.py out=c", "data": data | {"path": "demos.zarr"}}
    assert run.settings == {"data": "of content c0ffeec0ffee", "lr": 1} and run.data_hash == "c0ffee" * 8
    assert write_run(tmp_path / "bare", half).origin == {}
    (run.path / "provenance.json").write_text("{")
    with pytest.raises(ValueError, match="provenance.json is damaged"):
        run.origin  # noqa: B018


def test_metrics_drop_a_torn_line_and_the_future_of_a_resumed_run(tmp_path: Path) -> None:
    seed = write_run(tmp_path, half).seed(0)
    assert seed.metrics() == []
    file = seed.append_metrics(0)
    for step in (1, 2, 3):
        file.record({"step": step, "loss": 1 / 3})
    file.close()
    with open(seed.path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 4, "lo')
    assert [row["step"] for row in seed.metrics()] == [1, 2, 3]
    seed.append_metrics(2).close()
    assert seed.metrics() == [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 1 / 3}]
    (seed.path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is damaged"):
        seed.metrics()


def test_an_atomic_write_leaves_the_file_alone_until_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"


def test_drafts_of_killed_and_of_failed_writers_are_swept(tmp_path: Path, monkeypatch) -> None:
    old, new = tmp_path / ".file.x1", tmp_path / ".file.x2"
    for draft in (old, new, tmp_path / ".other.x1"):
        draft.write_text("half")
    os.utime(old, (0, 0))
    write_atomically(tmp_path / "file", b"first")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "file", b"second")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.x2", ".other.x1", "file"]


def test_a_draft_that_goes_while_drafts_are_swept_is_none_of_ours(tmp_path: Path, monkeypatch) -> None:
    """Two processes write one file: the other's draft becomes the file."""
    (tmp_path / ".file.x1").symlink_to(tmp_path / "gone")  # it is listed, and cannot be looked at
    write_atomically(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_summary_is_json_and_goes_where_training_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path, half)
    run.write_summary({"a": [1.5]}, "text")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": [1.5]}
    assert (tmp_path / "summary.md").read_text() == "text"
    run.forget_summary()
    assert not list(tmp_path.glob("summary*"))


def begun(*paths: Path) -> list[RunDirectory]:
    for path in paths:
        RunDirectory(path).begin("{}", {})
    return [RunDirectory(path) for path in paths]


def test_runs_are_labelled_by_as_much_of_their_paths_as_tells_them_apart() -> None:
    assert list(label_runs([RunDirectory("/x/knn"), RunDirectory("/x/vanilla")])) == ["knn", "vanilla"]
    assert list(label_runs([RunDirectory("/x/a/knn"), RunDirectory("/x/b/knn")])) == ["a/knn", "b/knn"]


def test_runs_are_named_by_directory_by_name_or_by_the_directory_around_them(tmp_path: Path, monkeypatch) -> None:
    begun(tmp_path / "knn", tmp_path / "vanilla", tmp_path / "y=z")
    monkeypatch.chdir(tmp_path)
    for text, names in {"knn": ["knn"], "vanilla,knn": ["vanilla", "knn"], "a=knn,b=y=z": ["a", "b"]}.items():
        assert list(named_runs(text)) == names
    assert named_runs("a=knn,b=y=z")["b"].path == Path("y=z")
    assert list(named_runs(str(tmp_path))) == ["vanilla", "knn", "y=z"]
    assert list(named_runs("a=knn,b=knn")) == ["a", "b"]  # one run may be shown under two names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knn,,", "write DIR,DIR or NAME=DIR,NAME=DIR"),
        ("a=knn,knn", "write DIR,DIR or NAME=DIR,NAME=DIR"),
        ("=knn", "write DIR,DIR or NAME=DIR,NAME=DIR"),
        ("a=", "write DIR,DIR or NAME=DIR,NAME=DIR"),
        ("a=knn,a=knn", "a name is given twice"),
        ("knn,knn", "is given twice; name each run once"),
        ("empty", "empty has no config.yaml, so it is not a run"),
        ("a=.", "has no config.yaml, so it is not a run"),
    ],
)
def test_what_names_no_runs_is_refused(tmp_path: Path, monkeypatch, text: str, message: str) -> None:
    begun(tmp_path / "knn")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        named_runs(text)
