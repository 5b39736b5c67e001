"""What Weights & Biases and TensorBoard are given: curves on three axes, pictures, options and a summary."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.video import encode_gif
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training import loggers
from immiscible_policy.training.loggers import Media, Monitor, TensorBoard, Wandb, _wandb_run, require_loggers
from tests.training.helpers import here, refused, write_small_store

OPTIONS = {"task": {"name": "pusht"}, "method": "flow", "noise": {"name": "knn", "k": 2}, "steps": 3}
GIF, _ = encode_gif([np.zeros((4, 6, 3), np.uint8)] * 2, fps=10)


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Begin the wandb run of a seed; what `wandb.init` is given."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=dict, errors=SimpleNamespace(Error=RuntimeError)))
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    for name in ("WANDB_PROJECT", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)

    def begin(seed, mode="offline"):
        return _wandb_run(SimpleNamespace(wandb=mode, identity=OPTIONS), RunDirectory(tmp_path / "knn").seed(seed))

    return begin


def test_the_seeds_of_a_run_are_a_group_of_runs_of_their_own(begun):
    one, other = begun(0), begun(1)
    assert one["group"] == other["group"] and one["group"].endswith("/knn") and one["project"] == "immiscible-policy"
    assert one["id"] != other["id"] and one["name"] == "knn-seed0"
    assert one["tags"] == ["pusht", "flow", "knn"] and one["config"] == OPTIONS | {"train_seed": 0}


def test_a_resumed_training_continues_its_run(begun):
    assert begun(3) == begun(3) and begun(3)["resume"] == "allow"


def test_the_environment_names_project_and_group(begun, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "arms")
    monkeypatch.setenv("WANDB_RUN_GROUP", "tuesday")
    assert (begun(0)["project"], begun(0)["group"]) == ("arms", "tuesday")


def test_the_environment_names_the_mode_where_no_word_does(monkeypatch):
    assert compose_config([]).wandb == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose_config([]).wandb == "disabled" and compose_config(["wandb=offline"]).wandb == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert compose_config(["experiment=debug"]).wandb == "disabled"
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(CommandError, match="unknown wandb .shared.; known: offline, online, disabled"):
        compose_config([])


def test_disabled_begins_nothing(begun):
    assert begun(0, "disabled") is None


@pytest.mark.parametrize("wandb, tensorboard, package", [("online", False, "wandb"), ("disabled", True, "tensorboard")])
def test_what_is_not_installed_is_one_line_with_its_command(monkeypatch, wandb, tensorboard, package):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=rf"pip install 'immiscible-policy\[{package}\]'"):
        require_loggers(SimpleNamespace(wandb=wandb, tensorboard=tensorboard))


class Kept:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.rows, self.pictures, self.curves, self.summary = [], [], {}, None

    def log(self, values, step):
        self.rows.append((step, dict(values)))

    def log_episodes(self, name, points):
        self.curves[name] = points

    def show(self, name, picture, step):
        self.pictures.append((name, step))

    def finish(self, summary):
        self.summary = summary


def monitored(media, rows=(), ended=True):
    kept = Kept()
    work = SimpleNamespace(scores=lambda: {2: 0.5, 4: 0.25}, media=media)
    monitor = Monitor([kept], work, ["coverage"], rows)
    for step, coverage in ((2, 0.5), (4, 0.25)):
        monitor.record({"step": step, "loss": 1.0, "seconds": 1.5}, SimpleNamespace(step=step))
        monitor.record({"step": step, "coverage": coverage, "episodes": 3}, SimpleNamespace(step=step))
    monitor.finish(ended)
    return kept


def test_an_evaluation_is_drawn_against_the_seconds_of_training_too():
    earlier = [{"step": 1, "loss": 2.0, "seconds": 10.0}]
    evaluated = [row for _, row in monitored(lambda state: Media(), earlier).rows if "coverage" in row]
    assert [(row["training_seconds"], row["by_training_second/coverage"]) for row in evaluated] == [
        (11.5, 0.5),
        (13.0, 0.25),
    ]


def test_the_summary_names_the_best_checkpoint():
    summary = monitored(lambda state: Media()).summary
    assert summary == {"best_step": 2, "best/coverage": 0.5, "training_seconds": 3.0}


def test_pictures_come_with_each_evaluation_and_the_last_episodes_at_the_end():
    kept = monitored(lambda state: Media({"rollouts": GIF}, {"coverage": [(0, 0.0), (10, 1.0 / state.step)]}))
    assert kept.pictures == [("rollouts", 2), ("rollouts", 4)]
    assert kept.curves == {"coverage": [(0, 0.0), (10, 0.25)]}


def test_what_wandb_counts_beyond_the_training_steps_is_logged_at_its_end_alone():
    """Steps that a resumed training logs later would be dropped."""
    assert monitored(lambda state: Media({}, {"coverage": [(0, 0.0)]}), ended=False).curves == {}


def test_a_new_training_in_the_same_place_is_a_run_of_its_own(begun, tmp_path):
    identities = set()
    for began in ("monday", "tuesday"):
        RunDirectory(tmp_path / "knn")._write("steps: 3\n", {"began": began})
        identities.add(begun(0)["id"])
    assert len(identities) == 2


def test_a_machine_that_cannot_draw_trains_all_the_same():
    def media(state):
        raise ValueError("no display")

    kept = monitored(media)
    assert len(kept.rows) == 4 and kept.summary["no_pictures"] == "no display"


def test_wandb_has_an_axis_for_each_kind_of_curve():
    pytest.importorskip("wandb")
    axes, logged = {}, []
    run = SimpleNamespace(
        define_metric=lambda name, step_metric: axes.update({name: step_metric}),
        log=lambda values, step=None: logged.append((step, values)),
        summary={},
        finish=lambda: None,
    )
    wandb = Wandb(run)
    wandb.log({"coverage": 0.5, "by_training_second/coverage": 0.5, "training_seconds": 3.0}, 7)
    wandb.log_episodes("coverage", [(0, 0.0), (10, 0.5)])
    wandb.show("rollouts", GIF, 7)
    wandb.finish({"best_step": 7})
    assert axes == {"by_training_second/*": "training_seconds", "by_environment_step/*": "environment_step"}
    assert [step for step, _ in logged] == [7, None, None, 7] and run.summary == {"best_step": 7}
    assert logged[2][1] == {"environment_step": 10, "by_environment_step/coverage": 0.5}
    assert type(logged[3][1]["rollouts"]).__name__ == "Video"


def events(directory):
    """Event files as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(directory)).Reload()


def scalars(seed):
    """All curves of a seed, as TensorBoard reads them."""
    places = [seed.path / "tensorboard" / kind for kind in ("", "by_training_second", "by_environment_step")]
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for read in map(events, places)
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_of_a_resumed_training_shows_every_moment_once(tmp_path):
    """Steps 7 and 9 took 3 and 40 s; the training was killed, and goes on from step 7 with another step 9."""
    pytest.importorskip("tensorboard")
    seed, config = RunDirectory(tmp_path).seed(0), SimpleNamespace(to_yaml=lambda: "steps: 9")
    first = TensorBoard(seed, config, 0)
    for step, seconds, score in ((7, 3.2, 0.5), (9, 40.1, 0.6)):
        first.log({"coverage": score, "by_training_second/coverage": score, "training_seconds": seconds}, step)
    first.log_episodes("coverage", [(0, 0.0), (10, 0.6)])
    first.finish({})
    seed.append_metrics(0, True).record({"step": 7, "loss": 1.0, "seconds": 3.2})
    second = TensorBoard(seed, config, 7)
    second.log({"coverage": 0.7, "by_training_second/coverage": 0.7, "training_seconds": 20.5}, 9)
    second.log_episodes("coverage", [(0, 0.1), (10, 0.7)])
    second.finish({})
    drawn = {tag: [(step, pytest.approx(value)) for step, value in points] for tag, points in scalars(seed).items()}
    assert drawn == {
        "coverage": [(7, 0.5), (9, 0.7)],
        "by_training_second/coverage": [(3, 0.5), (20, 0.7)],
        "by_environment_step/coverage": [(0, 0.1), (10, 0.7)],
    }


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    seed = RunDirectory(tmp_path).seed(0)
    board = TensorBoard(seed, SimpleNamespace(to_yaml=lambda: "steps: 7"), 0)
    board.log({"step": 7, "coverage": 0.5, "by_training_second/coverage": 0.5, "training_seconds": 3.2}, 7)
    board.log_episodes("coverage", [(0, 0.0), (10, 0.5)])
    board.show("rollouts", GIF, 7)
    board.finish({"best_step": 7})
    assert scalars(seed) == {
        "coverage": [(7, 0.5)],
        "by_training_second/coverage": [(3, 0.5)],
        "by_environment_step/coverage": [(0, 0.0), (10, 0.5)],
    }
    read = events(seed.path / "tensorboard")
    assert read.Images("rollouts")[0].encoded_image_string == GIF
    assert {"config/text_summary", "summary/text_summary"} <= set(read.Tags()["tensors"])


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that both logged, trained by the command."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("logged")
    store = write_small_store(place / "store.zarr")
    words = ["experiment=debug", f"data={store}", "noise=knn", "k=2", "out=run", "wandb=offline", "tensorboard=true"]
    words += ["steps=4", "checkpoint_every=4", "log_every=2", "warmup_steps=1", "sampling_steps=1"]
    done = here("train_policy.py", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "run"


def test_a_training_shows_its_curves_its_rollouts_and_its_noise(logged):
    read = events(logged / "seed_0/tensorboard")
    metrics = [json.loads(line) for line in (logged / "seed_0/metrics.jsonl").read_text().splitlines()]
    coverage = [(row["step"], pytest.approx(row["coverage"])) for row in metrics if "coverage" in row]
    assert [(event.step, event.value) for event in read.Scalars("coverage")] == coverage
    assert read.Images("rollouts")[-1].encoded_image_string.startswith(b"GIF")
    assert read.Images("noise/audit")[-1].encoded_image_string.startswith(b"\x89PNG")
    read = events(logged / "seed_0/tensorboard/by_environment_step")
    reached = [event.value for event in read.Scalars("by_environment_step/coverage")]
    assert reached == sorted(reached)  # the largest so far
    assert len(list((logged / "seed_0/wandb").rglob("*.gif"))) == len(coverage)


def test_a_missing_logger_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    line = refused(here("train_policy.py", "tensorboard=true", "out=run", cwd=tmp_path))
    assert "tensorboard" in line and not (tmp_path / "run").exists()
