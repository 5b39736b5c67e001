"""Grids through the real command line: one directory for each arm, resumed arm by arm, and a table."""

import json
from types import SimpleNamespace

import pytest
import yaml

from immiscible_policy.cli import CommandError
from immiscible_policy.commands import train_grid
from immiscible_policy.commands.train_grid import read_grid
from immiscible_policy.commands.train_policy import departures
from immiscible_policy.recipes import robot
from immiscible_policy.recipes.noise import noise_options
from immiscible_policy.recipes.robot_config import SCHEMA, compose_config
from immiscible_policy.tasks import open_demonstrations
from immiscible_policy.training import driver
from immiscible_policy.training.options import config_dir
from immiscible_policy.training.processes import ProcessGroup
from tests.training.helpers import here, refused, seeds_in_turn, tree, write_small_store

TINY = ("down_dims=[16,32]", "step_embed_dim=16", "batch_size=32", "steps=6", "warmup_steps=1",
        "checkpoint_every=6", "episodes=1", "sampling_steps=2", "wandb=disabled",
        "precision=fp32", "seed=0")  # fmt: skip


def robot_grid(words):
    return read_grid(words, SCHEMA)


def experiments():
    files = sorted((config_dir() / "experiment").glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text()) for path in files}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", ["table2", "race", "dial"])
def test_every_arm_is_a_plain_run(name, scale):
    grid = robot_grid([f"experiment={name}", f"scale={scale}", "device=cpu", "out=some/where"])
    arms = experiments()[name]["arms"]
    assert list(grid.arms) == list(arms) and set(grid.contrasts) <= set(arms)
    for arm, config in grid.arms.items():
        words = arms[arm] if isinstance(arms[arm], list) else arms[arm][scale]
        preset = experiments()[name].get("by_scale", {}).get(scale, [])
        alone = compose_config([f"experiment={name}", f"scale={scale}", "device=cpu", *words, *preset])
        assert config.out == f"some/where/{arm}" and config.identity == alone.identity
    assert len({json.dumps(config.identity) for config in grid.arms.values()}) == len(arms)


def test_given_words_go_before_those_of_the_scale():
    grid = robot_grid(["experiment=table2", "scale=paper", "device=cpu", "train_episodes=20"])
    assert {(item.train_episodes, item.validation) for item in grid.arms.values()} == {(20, 0.02)}


def test_the_published_table_is_sampled_as_published():
    grid = robot_grid(["experiment=table2", "scale=paper", "device=cpu"])
    sampling = {(item.solver, item.sampling_steps, item.spacing) for item in grid.arms.values()}
    assert sampling == {("ddpm", 100, "leading")}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_modality_protocol_is_the_published_one(scale):
    """5,000 epochs, assignment from epoch 50 on, DDPM with 100 steps, mirror images in every batch, 10 seeds."""
    arms = robot_grid(["experiment=modality_paper", f"scale={scale}", "device=cpu"]).arms
    for config in arms.values():
        assert (config.epochs, config.solver, config.sampling_steps) == (5_000, "ddpm", 100)
        assert config.mirror and config.mirror_batches and config.seed == "0..9"
    sized, per_epoch = arms["idp26"].sized(256 * 42), 42
    options = noise_options(sized.noise, steps=sized.steps, batch_size=256, steps_per_epoch=per_epoch)
    assert (sized.steps, options.select.schedule.start) == (5_000 * per_epoch, 50 * per_epoch)


def test_published_figures_stand_beside_the_published_protocol_alone():
    """Data, split, length and sampler: each difference is named."""
    grid = robot_grid(["experiment=table2", "scale=paper", "device=cpu"])
    human = {"content_hash": grid.protocol["data"][0]}

    def run(words=(), data=human, windows=10_700):
        config = robot_grid(["experiment=table2", "scale=paper", "device=cpu", *words]).arms["knn_k2"].sized(windows)
        return SimpleNamespace(config=config, data=data, loaded=SimpleNamespace(training=range(windows)))

    assert grid.published["coverage"]["knn_k2"] == {"last10": 0.8283, "max": 0.8674}
    assert departures(grid.protocol, run()) == departures(grid.protocol, run(["obs=image"])) == []
    assert departures(grid.protocol, run(["optimizer=muon"])) == ["optimizer=muon (published: adamw)"]
    assert departures(grid.protocol, run(["down_dims=[64,128]", "batch_size=128", "steps=252000"])) == [
        "down_dims=[64,128] (published: [256,512,1024] or [512,1024,2048])", "batch_size=128 (published: 256 or 64)",
    ]  # fmt: skip
    other = run(["train_episodes=20", "solver=ddim", "sampling_steps=10", "steps=4200"], {"content_hash": "f" * 64})
    assert departures(grid.protocol, other) == [
        "data=ffffffffffff (published: 2b639404c122 or 99dd4261dd5c)", "train_episodes=20 (published: 90)",
        "epochs=100 (published: 3000)", "solver=ddim (published: ddpm)", "sampling_steps=10 (published: 100)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "arms"),
    [
        (["noise=knn", "k=2,4"], {"k2": ("knn", 2), "k4": ("knn", 4)}),
        (["noise=knn", "noise.k=2,4"], {"noise.k2": ("knn", 2), "noise.k4": ("knn", 4)}),
        (["noise=vanilla,knn", "seed=0,1"], {"vanilla": ("vanilla", None), "knn": ("knn", 2)}),
        (["noise=vanilla,knn", "k=4"], {"vanilla": ("vanilla", None), "knn": ("knn", 4)}),
        (["noise=linear,c2ot", "select_over=8"], {"linear": ("linear", None), "c2ot": ("c2ot", None)}),
        (["noise=knn,linear", "exclude=padding"], {"knn": ("knn", 2), "linear": ("linear", None)}),
        (["noise=vanilla,knn", "k=2,4"], {"vanilla": ("vanilla", None), "knn_k2": ("knn", 2), "knn_k4": ("knn", 4)}),
    ],
)
def test_a_word_with_several_values_is_a_grid(words, arms):
    grid = robot_grid([*words, "device=cpu", "out=some/where"])
    assert {arm: (item.noise["name"], item.noise.get("k")) for arm, item in grid.arms.items()} == arms
    assert [item.out for item in grid.arms.values()] == [f"some/where/{arm}" for arm in arms]


def test_several_words_with_several_values_are_combined_below_a_directory_of_their_own():
    grid = robot_grid(["noise=knn", "k=2,4", "lr=1e-3,1e-4", "device=cpu"])
    assert str(grid.out) == "runs/pusht_keypoints_knn_cpu_k-2-4_lr-1e-3-1e-4"
    assert {arm: (item.noise["k"], item.lr) for arm, item in grid.arms.items()} == {
        "k2_lr1e-3": (2, 1e-3), "k2_lr1e-4": (2, 1e-4), "k4_lr1e-3": (4, 1e-3), "k4_lr1e-4": (4, 1e-4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=table2", "lr=1e-3,1e-4"], "lr=1e-3,1e-4: experiment=table2 has arms of its own; give lr= one"),
        (["k=2,4"], "k=2: noise=vanilla has no k"),
        (["noise=vanilla,linear", "k=4"], "k=4: noise=vanilla has no k"),
        (["noise=knn", "k=2,two"], "k=two"),
        (["noise=knn", "k=2,4,2"], "k=2,4,2: a value is given twice"),
        (["arms=vanilla"], "arms=vanilla: only an experiment with arms has some to pick from"),
        (["resume=runs/x", "steps=100,200"], "steps=100,200: resume=runs/x continues one run; give one value"),
        (["launcher=local,ray"], "launcher=local,ray: it changes no result; give it one value"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(words, message):
    with pytest.raises(ValueError) as refused:
        grid = robot_grid([*words, "device=cpu"])
        [noise_options(item.noise, steps=9, batch_size=4, steps_per_epoch=1) for item in grid.arms.values()]
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_arms_picks_some_of_them_in_the_order_of_the_experiment():
    words = ["experiment=dial", "device=cpu", "out=some/where"]
    some, every = robot_grid([*words, "arms=linear,vanilla"]), robot_grid(words)
    assert list(some.arms) == ["vanilla", "linear"]
    assert some.arms == {arm: every.arms[arm] for arm in some.arms}
    with pytest.raises(CommandError, match="unknown arm 'knn_k3'; did you mean 'knn_k4'"):
        robot_grid([*words, "arms=vanilla,knn_k3"])


def test_only_experiments_with_arms_are_grids():
    names = {name for name, content in experiments().items() if "arms" in content}
    assert names == {"table2", "race", "dial", "metaworld10", "modality_paper"}
    for name in set(experiments()) - names:
        assert robot_grid([f"experiment={name}"]) is None
    assert robot_grid(["noise=knn", "k=2"]) is None


def test_a_grid_trains_every_arm_resumes_and_skips_what_is_finished(store, tmp_path, monkeypatch):
    arms = "arms=vanilla,knn_k2,linear"
    words = ("experiment=table2", *TINY, f"data={store}", f"out={tmp_path / 'grid'}")
    plan = here("train_policy.py", *words, arms, "dry_run=true")
    assert plan.returncode == 0 and plan.stdout.count("dry run: nothing was written") == 3
    assert not (tmp_path / "grid").exists()
    # The third arm cannot start, as something else is in its place: nothing begins.
    (tmp_path / "grid" / "linear").mkdir(parents=True)
    (tmp_path / "grid" / "linear" / "notes.txt").write_text("mine")
    message = refused(here("train_policy.py", *words, arms))
    assert "linear: out=" in message and "contains other files" in message
    assert [path.name for path in (tmp_path / "grid").iterdir()] == ["linear"]
    (tmp_path / "grid" / "linear" / "notes.txt").unlink()
    assert here("train_policy.py", *words, "arms=vanilla,knn_k2").returncode == 0
    before = {arm: tree(tmp_path / "grid" / arm) for arm in ("vanilla", "knn_k2")}
    # The third arm by itself joins the table, and the first stays what the others are compared with.
    result = here("train_policy.py", *words, "arms=linear")
    assert result.returncode == 0, result.stderr
    assert "finished already" not in result.stdout and "by seed and start with vanilla" in result.stdout
    assert {arm: tree(tmp_path / "grid" / arm) for arm in before} == before
    assert "| linear | 0." in result.stdout and "incomplete" not in result.stdout
    result = here("train_policy.py", *words, arms)
    assert result.returncode == 0 and result.stdout.count("finished already") == 3
    # A command of other options trains nothing, and leaves the table as it is.
    table = (tmp_path / "grid/table2.md").read_text()
    assert "vanilla: lr=0.5 differs from the run in" in refused(here("train_policy.py", *words, arms, "lr=0.5"))
    message = refused(here("train_policy.py", *words, "arms=linear", "lr=0.5"))
    assert "vanilla was trained there before with other options (lr=0.5 differs" in message
    assert message.endswith("name another out=") and (tmp_path / "grid/table2.md").read_text() == table
    monkeypatch.setattr(train_grid, "process_group", lambda: ProcessGroup(1, 2, 1))  # the first process writes alone
    assert "| linear | 0." not in here("train_policy.py", *words, arms).stdout


def test_a_grid_opens_its_store_once_and_its_seeds_never(tmp_path, monkeypatch):
    """Two arms of two seeds each: the store is opened by the check, and is gone when the seeds start."""
    store, opened = write_small_store(tmp_path / "small.zarr"), []

    def counting(task, data, *more):
        opened.append(data)
        return open_demonstrations(task, data, *more)

    def without_store(*arguments):
        if store.exists():
            store.rename(tmp_path / "away.zarr")
        return in_turn(*arguments)

    monkeypatch.setattr(robot, "open_demonstrations", counting)
    words = ("experiment=table2", "arms=vanilla,linear", *TINY[:-1], "seed=0..1", f"data={store}")
    with seeds_in_turn():
        in_turn = driver.train_seeds
        monkeypatch.setattr(driver, "train_seeds", without_store)
        result = here("train_policy.py", *words, f"out={tmp_path / 'grid'}")
    assert result.returncode == 0, result.stderr
    assert opened == [str(store)] and not store.exists()
    assert json.loads((tmp_path / "grid/table2.json").read_text())["arms"]["linear"]["missing_seeds"] == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("noise=knn", "noise=knn: the arms of experiment=table2 decide that themselves (vanilla, knn_k2, linear"),
        ("k=4", "k=4: the arms"),
        ("stepz=4", "did you mean 'steps'"),
        ("data=/nowhere", "/nowhere"),
    ],
)
def test_unusable_words_are_refused_before_any_arm_begins(word, message, tmp_path):
    out = tmp_path / "grid"
    assert message in refused(here("train_policy.py", "experiment=table2", word, f"out={out}"))
    assert not out.exists()


def test_a_place_that_cannot_be_is_named_once_for_all_arms(tmp_path):
    (tmp_path / "file").touch()
    line = refused(here("train_policy.py", "experiment=table2", f"out={tmp_path / 'file'}"))
    assert line.count("is not a directory") == 1
