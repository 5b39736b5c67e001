"""Grids through the real command line: one directory for each arm, resumed arm by arm, and a table."""

import json

import pytest
import yaml

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.train_grid import read_grid
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.training.options import config_dir
from tests.training.helpers import here, refused, tree, write_small_store

TINY = ("down_dims=[16,32]", "step_embed_dim=16", "batch_size=32", "steps=6", "warmup_steps=1",
        "checkpoint_every=6", "episodes=1", "sampling_steps=2", "wandb=disabled",
        "precision=fp32", "seed=0")  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_small_store(tmp_path_factory.mktemp("store") / "small.zarr")


def experiments():
    files = sorted((config_dir() / "experiment").glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text()) for path in files}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", ["table2", "ksweep", "when"])
def test_every_arm_is_a_plain_run(name, scale):
    grid = read_grid([f"experiment={name}", f"scale={scale}", "device=cpu", "out=some/where"])
    arms = experiments()[name]["arms"]
    assert list(grid.arms) == list(arms) and next(iter(grid.arms)) == "vanilla"
    for arm, config in grid.arms.items():
        words = arms[arm] if isinstance(arms[arm], list) else arms[arm][scale]
        split = experiments()[name].get("by_scale", {}).get(scale, [])
        alone = compose_config([f"experiment={name}", f"scale={scale}", "device=cpu", *words, *split])
        assert config.out == f"some/where/{arm}" and config.identity == alone.identity and config.seed == "0..2"
    assert len({json.dumps(config.identity) for config in grid.arms.values()}) == len(arms)


def test_given_words_go_before_those_of_the_scale():
    grid = read_grid(["experiment=table2", "scale=paper", "device=cpu", "train_episodes=20"])
    assert {(each.train_episodes, each.validation) for each in grid.arms.values()} == {(20, 0.02)}


def test_arms_picks_some_of_them_in_the_order_of_the_experiment():
    words = ["experiment=when", "device=cpu", "out=some/where"]
    some, every = read_grid([*words, "arms=idp26,vanilla"]), read_grid(words)
    assert list(some.arms) == ["vanilla", "idp26"]
    assert some.arms == {arm: every.arms[arm] for arm in some.arms}
    with pytest.raises(CommandError, match="unknown arm 'knn_k3'; did you mean 'knn_k2'"):
        read_grid([*words, "arms=vanilla,knn_k3"])


def test_only_experiments_with_arms_are_grids():
    names = {name for name, content in experiments().items() if "arms" in content}
    assert names == {"table2", "ksweep", "when"}
    for name in set(experiments()) - names:
        assert read_grid([f"experiment={name}"]) is None
    assert read_grid(["noise=knn", "k=2"]) is None


def test_a_grid_trains_every_arm_resumes_and_skips_what_is_finished(store, tmp_path):
    arms = "arms=vanilla,knn_k2,linear"
    words = ("experiment=ksweep", arms, *TINY, f"data={store}", f"out={tmp_path / 'grid'}")
    plan = here("train_policy.py", *words, "dry_run=true")
    assert plan.returncode == 0 and plan.stdout.count("dry run: nothing was written") == 3
    assert not (tmp_path / "grid").exists()
    # The third arm cannot start: something else is in its place. The others are trained all the same.
    (tmp_path / "grid" / "linear").mkdir(parents=True)
    (tmp_path / "grid" / "linear" / "notes.txt").write_text("mine")
    said = refused(here("train_policy.py", *words))
    assert "linear: out=" in said and "holds other files" in said
    figures = json.loads((tmp_path / "grid" / "ksweep.json").read_text())["arms"]
    assert [arm for arm, each in figures.items() if each["missing_seeds"]] == ["linear"]
    before = {arm: tree(tmp_path / "grid" / arm) for arm in ("vanilla", "knn_k2")}
    (tmp_path / "grid" / "linear" / "notes.txt").unlink()
    result = here("train_policy.py", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished already") == 2
    assert {arm: tree(tmp_path / "grid" / arm) for arm in before} == before
    assert "| linear | 0." in result.stdout and "incomplete" not in result.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("noise=knn", "noise=knn: the arms of experiment=table2 decide that themselves (vanilla, knn_k2, linear"),
        ("k=4", "k=4: the arms"),
        ("stepz=4", "did you mean 'steps'"),
        ("data=/nowhere", "/nowhere"),
    ],
)
def test_unusable_words_are_refused_before_any_arm_begins(word, said, tmp_path):
    out = tmp_path / "grid"
    assert said in refused(here("train_policy.py", "experiment=table2", word, f"out={out}"))
    assert not out.exists()
