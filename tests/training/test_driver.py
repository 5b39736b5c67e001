"""The driver trains whatever is a recipe: prepared once, here or in processes, resumed, refused in one line."""

import os
import shutil
import signal
import sys
import threading
import time
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.cli import CommandError, Interrupted
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.training import driver
from immiscible_policy.training.driver import train_run
from immiscible_policy.training.recipe import recipe_name
from immiscible_policy.training.seed import train_seed
from immiscible_policy.training.stopping import STOP
from tests.results.runs import episode
from tests.training.helpers import seeds_in_turn, tree
from tests.training.toy_recipe import WORDS, Line, ToyRecipe


@pytest.fixture
def data(tmp_path):
    (tmp_path / "points").touch()
    return tmp_path / "points"


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two seeds, each in a process of its own, and the data that they were prepared from."""
    place = tmp_path_factory.mktemp("together")
    (place / "points").touch()
    return train(place / "points", place / "run", "seed=0..1", "parallel=2"), place / "points"


def train(data, out, *words, **options):
    given = dict(word.split("=", 1) for word in [*WORDS, f"data={data}", f"out={out}", *words])
    train_run(ToyRecipe, compose_config([f"{key}={text}" for key, text in given.items()]), **options)
    return RunDirectory(out)


def weights(run, seed):
    newest = run.seed(seed).newest()
    return newest.step, {name: newest.tensors(name) for name in ("model", "ema", "optimizer")}


def same(one, other):
    (step, ours), (other_step, theirs) = one, other
    return step == other_step and all(
        torch.equal(ours[kind][name], theirs[kind][name]) for kind in ours for name in ours[kind]
    )


def test_a_recipe_is_found_by_its_name():
    assert recipe_name(ToyRecipe) == "tests.training.toy_recipe:ToyRecipe"
    assert resolve_name(recipe_name(ToyRecipe)) is ToyRecipe


def test_seeds_in_processes_share_one_preparation_and_equal_a_seed_alone(together, data, tmp_path, capsys):
    run, prepared = together
    assert prepared.read_text() == "prepared\n" and run.summary["slopes"].keys() == {"0", "1"}
    alone = train(data, tmp_path / "alone", "seed=1")
    assert same(weights(alone, 1), weights(run, 1)) and not same(weights(alone, 1), weights(run, 0))
    message = capsys.readouterr().out
    assert "data:   four points" in message and "slope " in message and message.endswith("\n1 lines\n")


def test_a_launched_job_prepares_for_itself_and_equals_the_others(together, data, tmp_path):
    pytest.importorskip("joblib", reason="joblib is not installed")
    launched = train(data, tmp_path / "launched", "seed=1", "launcher=joblib")
    assert data.read_text() == 2 * "prepared\n"  # the check, and the job
    assert same(weights(launched, 1), weights(together[0], 1))


def test_a_recipe_that_exists_is_not_prepared_again(data, tmp_path):
    config = compose_config([*WORDS, f"data={data}", f"out={tmp_path / 'run'}"])
    recipe = ToyRecipe.prepare(config)
    train_run(ToyRecipe, config, recipe)
    assert data.read_text() == "prepared\n" and RunDirectory(tmp_path / "run").is_finished()


def test_a_finished_run_is_left_alone_without_its_data(data, tmp_path, capsys):
    run = train(data, tmp_path / "run")
    data.unlink()
    train(data, tmp_path / "run", "resume=true")
    assert "finished already" in capsys.readouterr().out and run.is_finished()
    with pytest.raises(CommandError, match="has a run already; continue it with resume=true"):
        train(data, tmp_path / "run")
    with pytest.raises(CommandError, match="lr=0.5 differs from the run in"):
        train(data, tmp_path / "run", "resume=true", "lr=0.5")
    (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text().replace("noise:", "lr: 0.5\nnoise:"))
    with pytest.raises(ValueError, match="two trainings are mixed"):
        train_run(ToyRecipe, compose_config([f"resume={run.path}"]))


def test_a_run_is_resumed_from_elsewhere_with_its_data_moved_and_its_seeds_spelled_otherwise(
    data, tmp_path, monkeypatch, capsys
):
    """What lies where is no part of a training whose data are known by their content."""
    monkeypatch.chdir(data.parent)
    with seeds_in_turn():
        run = train(data.name, tmp_path / "run", "seed=0..1", "steps=4")
    (tmp_path / "other").mkdir()
    moved = data.rename(tmp_path / "other" / "points")
    monkeypatch.chdir(moved.parent)
    resume = f"resume={run.path}"
    with pytest.raises(ValueError, match=f"{data}"):
        train_run(ToyRecipe, compose_config([resume, "steps=6"]))
    with seeds_in_turn():
        train_run(ToyRecipe, compose_config([resume, "steps=6", "data=points"]))
        assert [run.seed(number).newest().step for number in (0, 1)] == [6, 6]
        train(moved, run.path, "seed=0,1", "resume=true", "steps=8")
    assert run.is_finished() and run.config["steps"] == 8 and run.config["data"] == str(moved)
    capsys.readouterr()
    with pytest.raises(CommandError, match=f"steps=6: the run in {run.path} has 8 steps; use resume={run.path}, or"):
        train(moved, run.path, "seed=0..1", "resume=true")


def test_what_a_run_recorded_of_a_machine_is_decided_anew_on_another(data, tmp_path, monkeypatch):
    """How many seeds train at once, and which of several devices."""
    run = train(data, tmp_path / "run", "seed=0..1", "parallel=2")
    resume = f"resume={run.path}"
    assert run.config["parallel"] == 2 and compose_config([resume]).parallel is None
    assert compose_config([resume, "launcher=ray"]).parallel == 1
    with pytest.raises(CommandError, match="device=cuda: no CUDA device is visible"):
        compose_config([resume, "device=cuda"])
    (run.path / "config.yaml").write_text(
        (run.path / "config.yaml").read_text().replace("device: cpu", "device: cuda:3")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = {compose_config([resume, *word]).device for word in ([], ["device=cuda:1"])}
    assert found == {"cuda", "cuda:1"}
    with pytest.raises(CommandError, match="device=cpu: .*run was trained on cuda; continue it there"):
        compose_config([resume, "device=cpu"])


def test_other_code_that_goes_on_with_a_run_is_noted(data, tmp_path, monkeypatch):
    """Once for each commit that follows another."""
    run = train(data, tmp_path / "run", "lr_schedule=constant")
    begun = run.provenance["commit"]
    for steps, commit in ((12, begun), (18, "f" * 12), (24, "f" * 12), (30, "e" * 12)):
        monkeypatch.setattr(driver, "commit", lambda commit=commit: commit)
        train_run(ToyRecipe, compose_config([f"resume={run.path}", f"steps={steps}"]))
    assert run.provenance["commit"] == begun and run.provenance["resumed_commits"] == ["f" * 12, "e" * 12]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_is_trained_further_by_its_directory_alone(schedule, data, tmp_path):
    """With a constant rate as if the longer training had been planned; with cosine the later rates are that one's."""
    planned = train(data, tmp_path / "planned", "steps=12", f"lr_schedule={schedule}")
    run = train(data, tmp_path / "run", f"lr_schedule={schedule}")
    train_run(ToyRecipe, compose_config([f"resume={run.path}", "steps=12"]))
    assert run.is_finished() and run.config["steps"] == 12 and run.provenance["extended"][0]["steps"] == 6
    later = [[row["lr"] for row in run.seed(0).metrics() if "lr" in row and row["step"] > 6] for run in (planned, run)]
    assert later[0] == later[1] and len(later[0]) == 4
    assert same(weights(run, 0), weights(planned, 0)) == (schedule == "constant")


@pytest.mark.parametrize("step", [6, 12])
def test_a_kill_during_an_evaluation_loses_no_training(step, data, tmp_path, monkeypatch):
    """Its checkpoint is there; resumed, the run evaluates it first, and equals one that was never killed."""
    words = ("steps=12", "checkpoint_every=6", "eval_every=6")
    whole = train(data, tmp_path / "whole", *words)
    build, batches, steps = ToyRecipe.build, Line.batches, []

    def killed(self, seed):
        work = build(self, seed)

        def evaluate(state):
            if state.step == step:
                raise KeyboardInterrupt
            return work.evaluate(state)

        return work._replace(evaluate=evaluate)

    monkeypatch.setattr(ToyRecipe, "build", killed)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", *words)
    run = RunDirectory(tmp_path / "run")
    assert run.seed(0).newest().step == step and not run.seed(0).newest().evaluated and not run.is_finished()
    monkeypatch.setattr(ToyRecipe, "build", build)
    monkeypatch.setattr(Line, "batches", lambda self, number: steps.append(number) or batches(self, number))
    train(data, tmp_path / "run", *words, "resume=true")
    assert set(steps) == set(range(step, 12)) and run.is_finished() and run.seed(0).newest().evaluated
    assert same(weights(run, 0), weights(whole, 0))
    slopes = [[(row["step"], row["slope"]) for row in it.seed(0).metrics() if "slope" in row] for it in (run, whole)]
    assert slopes[0] == slopes[1] and [number for number, _ in slopes[0]] == [6, 12]


def test_a_signal_ends_an_evaluation_at_once_if_its_checkpoint_is_there(data, tmp_path, monkeypatch):
    """At step 3 there is none, so that evaluation is finished; that of step 6 is not, and comes first later."""
    words, build = ("steps=12", "checkpoint_every=6", "eval_every=3"), ToyRecipe.build
    whole = train(data, tmp_path / "whole", *words)
    for step, kept in ((3, 4), (6, 6)):
        ended = []

        def signalled(self, seed, step=step, ended=ended):
            work = build(self, seed)

            def evaluate(state):
                if state.step == step:
                    signal.raise_signal(signal.SIGINT)
                ended.append(state.step)
                return work.evaluate(state)

            return work._replace(evaluate=evaluate)

        monkeypatch.setattr(ToyRecipe, "build", signalled)
        with pytest.raises(Interrupted, match="keeps a checkpoint, continue with"):
            train(data, tmp_path / f"run{step}", *words)
        run = RunDirectory(tmp_path / f"run{step}")
        assert run.seed(0).newest().step == kept and ended == [3] and not STOP.immediate
        assert run.seed(0).newest().evaluated == (step == 3)
        monkeypatch.setattr(ToyRecipe, "build", build)
        train(data, run.path, *words, "resume=true")
        assert same(weights(run, 0), weights(whole, 0)) and run.is_finished()
        slopes = [[(row["step"], row["slope"]) for row in r.seed(0).metrics() if "slope" in row] for r in (run, whole)]
        assert slopes[0] == slopes[1]


def test_of_two_trainings_that_begin_at_once_in_a_new_directory_one_is_refused(data, tmp_path, monkeypatch):
    """The second begins and ends while the first, which found nothing there, still prepares its data."""
    prepare = ToyRecipe.prepare

    def slow(config):
        monkeypatch.setattr(ToyRecipe, "prepare", prepare)
        train(data, tmp_path / "run", "noise=knn", "k=4", "seed=1")
        return prepare(config)

    monkeypatch.setattr(ToyRecipe, "prepare", slow)
    with pytest.raises(CommandError, match=r"^out=.*run: another training has just begun there; name another out=$"):
        train(data, tmp_path / "run", "seed=0")
    run = RunDirectory(tmp_path / "run")
    assert run.is_finished() and run.seeds() == [1] and run.config["noise"]["name"] == "knn"


def test_a_seed_is_not_trained_on_other_data_than_the_run(together, data, tmp_path, monkeypatch):
    """Data were replaced while another seed was trained."""
    run = RunDirectory(shutil.copytree(together[0].path, tmp_path / "run"))
    shutil.rmtree(run.seed(1).path)
    recipe = ToyRecipe(ToyRecipe.schema.read(run))
    monkeypatch.setattr(ToyRecipe, "data", {"path": "", "content_hash": "e" * 64})
    with pytest.raises(ValueError, match="^seed 1 has data of content eeeeeeeeeeee, the run in .* has of content ffff"):
        train_seed(recipe, run.seed(1), lambda event: None)
    assert run.seed(1).newest() is None and run.seed(1).metrics() == []


def test_episodes_evaluated_before_a_kill_and_again_after_it_have_one_row(data, tmp_path, monkeypatch):
    """The process dies when an evaluation is written but not noted in its checkpoint, the moment that doubles rows."""
    build, mark = ToyRecipe.build, SeedDirectory.mark_evaluated

    def evaluated(self, seed):
        def evaluate(state):
            assert all(row.checkpoint < state.step for row in seed.episodes()), "rows of the future"
            seed.append_episodes(episode(seed.number, state.step, start, 0.5) for start in (7, 8))
            return {}

        return build(self, seed)._replace(evaluate=evaluate)

    def killed(self, step):
        if step == 6:
            raise OSError("killed")
        mark(self, step)

    monkeypatch.setattr(ToyRecipe, "build", evaluated)
    monkeypatch.setattr(SeedDirectory, "mark_evaluated", killed)
    with pytest.raises(OSError, match="killed"):
        train(data, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert [row.checkpoint for row in run.seed(0).episodes()] == [3, 3, 6, 6]
    monkeypatch.setattr(SeedDirectory, "mark_evaluated", mark)
    train(data, run.path, "resume=true")
    assert [row["step"] for row in run.seed(0).metrics() if "loss" not in row] == [3, 6]
    lines = (run.path / "seed_0" / "episodes.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in lines] == [["3", "7"], ["3", "8"], ["6", "7"], ["6", "8"]]


@pytest.fixture
def hangup():
    """SIGHUP as a terminal's programs have it, although the tests may run under nohup."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, earlier)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(number, data, tmp_path, monkeypatch, capfd):
    """The signal comes in step 5, where no checkpoint is due; resumed, the result is that of a training in one go."""
    straight, batches = train(data, tmp_path / "straight"), Line.batches
    monkeypatch.setattr(Line, "batches", interrupting(batches, number))
    with pytest.raises(Interrupted, match=f"continue with: python .* resume={tmp_path / 'run'}$") as caught:
        train(data, tmp_path / "run", "engine=eager")
    run = RunDirectory(tmp_path / "run")
    assert caught.value.number == number and "stopping: every seed leaves a checkpoint" in capfd.readouterr().err
    assert [kept.step for kept in run.seed(0).checkpoints()] == [2, 4, 5] and run.summary is None
    monkeypatch.setattr(Line, "batches", batches)
    train_run(ToyRecipe, compose_config([f"resume={run.path}"]))
    assert [kept.step for kept in run.seed(0).checkpoints()] == [2, 4, 6]
    assert same(weights(run, 0), weights(straight, 0)) and signal.getsignal(number) != STOP.receive


@pytest.mark.usefixtures("hangup")
def test_a_hangup_ends_nothing_under_nohup(data, tmp_path, monkeypatch):
    straight = train(data, tmp_path / "straight")
    monkeypatch.setattr(Line, "batches", interrupting(Line.batches, signal.SIGHUP))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = train(data, tmp_path / "run")
    assert same(weights(run, 0), weights(straight, 0))


def test_a_script_that_its_workers_would_train_in_again_is_refused_and_creates_nothing(data, tmp_path, monkeypatch):
    script = tmp_path / "mine.py"
    script.write_text("train_run(...)")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(script)))
    with pytest.raises(CommandError, match=r"mine.py is imported .* put what it does below `if __name__ == "):
        train(data, tmp_path / "run", "seed=0..1")
    assert not (tmp_path / "run").exists()
    train(data, tmp_path / "run")  # of one seed there are no workers


def interrupting(batches, number):
    """Batches of the toy recipe; that of the fifth step comes with a signal."""

    def interrupted(self, step):
        if step == 4:
            signal.raise_signal(number)
        return batches(self, step)

    return interrupted


def test_a_signal_to_the_parent_alone_ends_its_workers_with_a_checkpoint_each(data, tmp_path):
    """As supervisors and notebooks send it; one seed waits for its turn."""
    out = tmp_path / "run"

    def send():
        until = time.monotonic() + 60
        while len(list(out.glob("seed_*/checkpoints/step_*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    long = ("steps=1000000", "checkpoint_every=1000", "log_every=1000", "eval_every=1000000", "keep=last+best")
    with pytest.raises(Interrupted, match="every seed that had begun keeps a checkpoint"):
        train(data, out, "seed=0..2", "parallel=2", *long)
    run = RunDirectory(out)
    for seed in (0, 1):
        newest = run.seed(seed).newest()
        assert newest is not None and newest.resumable and newest.metadata["interrupted"]
        with run.seed(seed).lock():  # nobody trains it any more
            pass
    assert not run.seed(2).path.exists()


def test_a_resume_beside_the_process_that_trains_is_refused_and_writes_nothing(data, tmp_path):
    run = train(data, tmp_path / "run")
    before = tree(run.path)
    with run.seed(0).lock(), pytest.raises(CommandError, match="run is being trained by another process; wait for it"):
        train_run(ToyRecipe, compose_config([f"resume={run.path}", "steps=12"]))
    assert tree(run.path) == before and run.summary is not None


def test_a_damaged_newest_checkpoint_resumes_from_the_one_before_and_says_so(data, tmp_path):
    straight, run = train(data, tmp_path / "straight"), train(data, tmp_path / "run")
    file = run.seed(0).checkpoint_path(6) / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    train_seed(ToyRecipe(ToyRecipe.schema.read(run)), run.seed(0), (events := []).append)
    assert events[0]["event"] == "damaged" and "step_000006/ema.safetensors is corrupt" in events[0]["why"]
    assert events[1] == {"event": "started", "seed": 0, "step": 4} and same(weights(run, 0), weights(straight, 0))


def test_what_a_recipe_refuses_creates_nothing(tmp_path):
    for words in ((), ("seed=0..1",), ("dry_run=true",)):
        with pytest.raises(ValueError, match="there is nothing"):
            train(tmp_path / "nowhere", tmp_path / "run", *words)
    assert not list(tmp_path.iterdir())


def test_one_seeds_failure_is_named_and_the_others_are_trained(together, tmp_path):
    whole, _ = together
    run = RunDirectory(shutil.copytree(whole.path, tmp_path / "run"))
    for seed in (0, 1):
        shutil.rmtree(run.seed(seed).path / "checkpoints")
    with run.seed(0).lock(), pytest.raises(CommandError, match=r"^seed 0 failed \(exit code 2\): .* another process"):
        train(whole.config["data"], run.path, "seed=0..1", "resume=true")
    assert same(weights(run, 1), weights(whole, 1)) and run.seed(0).newest() is None
