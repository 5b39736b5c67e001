"""What cannot fit is refused by its size, before anything is written; the plan says what fits."""

import re
from functools import partial

import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.recipes.image_config import SCHEMA as IMAGES
from immiscible_policy.recipes.robot_config import SCHEMA as ROBOT
from immiscible_policy.training.driver import begin, train_run
from immiscible_policy.training.memory import Footprint, free_memory, require_memory, saved_bytes, seeds_at_once
from tests.training.helpers import here, refused, write_small_store
from tests.training.toy_recipe import WORDS, ToyRecipe


def config(*words):
    given = {word.partition("=")[0] for word in words}
    return ROBOT.compose([*(word for word in WORDS if word.partition("=")[0] not in given), *words])


def test_what_the_backward_pass_needs_is_counted_once_and_without_parameters():
    """Of relu(A x): the input, which A's gradient needs, and the output, which relu's does; 4 bytes a number."""
    layer, x = torch.nn.Linear(5, 3), torch.randn(7, 5)
    assert saved_bytes(lambda: layer(x).relu(), layer.parameters()) == 4 * 7 * (5 + 3)


def test_without_memory_as_much_is_counted_as_with_it():
    counted = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            layers = torch.nn.Sequential(torch.nn.Conv1d(2, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
            x = torch.zeros(4, 2, 10)
        counted.append(saved_bytes(partial(layers, x), layers.parameters()))
    assert counted[0] == counted[1] > 4 * x.numel()


def test_an_estimate_is_that_of_all_seeds_at_once():
    footprint = Footprint(parameters=1000, activations=50, data=300)
    one = 24 * 1000 + 50 * 4 + 300
    assert footprint.estimate(config(), 1) == one and footprint.estimate(config(), 3) == 3 * one
    assert footprint.estimate(config("accumulate=2"), 1) == one - 50 * 2
    assert footprint.estimate(config("precision=bf16"), 1) == one - 50 * 2
    assert footprint._replace(selection=7).estimate(config(), 3) == 3 * (one + 7)


def test_of_several_processes_each_gpu_holds_its_own_rows(monkeypatch):
    """On the CPU of one machine all of them are there."""
    footprint, options = Footprint(parameters=1000, activations=50, data=300), config()
    alone = footprint.estimate(options, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert footprint.estimate(options, 1) == alone
    options.device = "cuda"
    assert footprint.estimate(options, 1) == alone - 50 * 2


def test_on_a_gpu_every_seed_has_its_data_and_several_batches_choose_noise():
    footprint, options = Footprint(parameters=1000, activations=50, data=300, selection=7), config()
    alone = footprint.estimate(options, 1)
    options.device = "cuda"
    assert footprint.estimate(options, 1) == alone + 3 * 7 and footprint.estimate(options, 2) == 2 * (alone + 3 * 7)


def test_as_many_seeds_train_at_once_as_cores_and_memory_have_room_for(monkeypatch):
    footprint, options = Footprint(parameters=1000, activations=50, data=300), config("seed=0..9")
    one = footprint.estimate(options, 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for room, seeds in ((None, 8), (100 * one, 8), (8 * one, 8), (8 * one - 1, 7), (3 * one, 3), (one, 1), (0, 1)):
        monkeypatch.setattr("immiscible_policy.training.memory.free_memory", lambda device, room=room: room)
        assert seeds_at_once(options, footprint) == seeds
        assert seeds_at_once(config("seed=0..9", "parallel=5"), footprint) == 5, "what is asked for is not lowered"
    monkeypatch.setattr("immiscible_policy.training.memory.free_memory", lambda device: None)
    assert seeds_at_once(config("seed=0..1"), footprint) == 2
    assert seeds_at_once(config("seed=0..1", "parallel=1024"), footprint) == 2
    assert seeds_at_once(config("seed=0..1", "launcher=joblib"), footprint) == 8, "a grid has more jobs than seeds"
    assert seeds_at_once(config("seed=0..9", "threads=2"), footprint) == 4


def test_what_does_not_fit_is_refused_and_a_cluster_is_not_asked(tmp_path, monkeypatch):
    free = free_memory("cpu")
    assert free is not None and 10**6 < free
    (tmp_path / "points").touch()
    monkeypatch.setattr(ToyRecipe, "footprint", Footprint(parameters=10**11, activations=0, data=0))
    monkeypatch.setattr("immiscible_policy.training.memory.free_memory", lambda device: 32 * 10**9)
    options = config(f"data={tmp_path / 'points'}", f"out={tmp_path / 'run'}", "seed=0..1", "parallel=2")
    need = "about 4,800.0 GB of memory are needed .100,000,000,000 parameters, batch_size=4, 2 seeds at once., 32.0 GB"
    with pytest.raises(CommandError, match=need):
        train_run(ToyRecipe, options)
    assert not (tmp_path / "run").exists()
    options.launcher = "ray"
    assert require_memory(options, ToyRecipe.footprint).startswith("memory: about 4,800.0 GB")
    monkeypatch.setattr(ToyRecipe, "rehearsal", None)  # its speed is not that of this machine either
    options.dry_run = True
    assert begin(ToyRecipe, options) is None


def test_the_plan_says_it_and_a_dry_run_refuses_what_cannot_fit(tmp_path):
    store = write_small_store(tmp_path / "small.zarr")
    words = ("experiment=debug", f"data={store}", f"out={tmp_path / 'run'}", "dry_run=true", *WORDS)
    plan = here("train_policy.py", *words).stdout
    assert "\nmemory: about 0." in plan and "\ntime:   about " in plan
    for selection in ("noise=linear", "noise=knn k=1000000", "noise=c2ot"):  # 28, 32 and 100 bytes a pair
        large = [word.replace("batch_size=4", "batch_size=1000000") for word in words]
        pairs = refused(here("train_policy.py", *large, *selection.split()))
        assert re.search(r"GB for each to choose noise\), [\d.]+ GB are free", pairs)
    wide = refused(here("train_policy.py", *words, "down_dims=[32768,65536]"))
    assert "GB of memory are needed" in wide and "make batch_size=, parallel= or the network smaller" in wide
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("schema", "word", "most"),
    [
        (ROBOT, "batch_size=1000000000", "1 to 1,000,000"),
        (ROBOT, f"batch_size={10**25}", "1 to 1,000,000"),
        (ROBOT, "diffusion_steps=1000000000", "1 to 100,000"),
        (ROBOT, "episodes=1000000000", "1 to 100,000"),
        (ROBOT, "down_dims=[1000000,2000000]", "1 to 65,536"),
        (ROBOT, f"warmup_steps={10**22}", "0 to 1,000,000,000"),
        (ROBOT, "horizon=1000000", "1 to 4,096"),
        (ROBOT, "lr=1e30", "a number above 0, at most 1,000"),
        (IMAGES, "size=100000", "1 to 4,096"),
        (IMAGES, "channels=[1000000]", "1 to 65,536"),
        (IMAGES, "layers=1000000", "1 to 64"),
        (IMAGES, "samples=1000000000", "1 to 100,000"),
        (IMAGES, "dropout=1", r"\[0, 1\)"),
    ],
)
def test_absurd_sizes_are_refused_with_what_is_possible(schema, word, most):
    with pytest.raises(CommandError, match=f"needs {most}$"):
        schema.compose([word, "data=x", "device=cpu"])
