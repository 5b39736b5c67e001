"""Composition of options: presets, selector options, and one line for every mistake."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from immiscible_policy.cli import CommandError, parse_range
from immiscible_policy.noise import SELECTORS
from immiscible_policy.recipes.image_config import SCHEMA as IMAGES
from immiscible_policy.recipes.noise import noise_options
from immiscible_policy.recipes.robot_config import SCHEMA, compose_config
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.options import config_dir, group_choices


def test_the_command_of_the_readme():
    config = compose_config(["noise=knn", "k=2", "seed=0..2", "device=cpu"])
    assert (config.noise["name"], config.noise["k"], config.noise["nearest"]) == ("knn", 2, "distance")
    assert parse_range("seed", config.seed) == [0, 1, 2]
    assert (config.obs, config.scale, config.task) == ("keypoints", "cpu", {"name": "pusht"})


def test_defaults_are_resolved():
    config = compose_config(["device=cpu"])
    assert config.noise == {"name": "vanilla"}
    assert config.eval_every == config.checkpoint_every
    assert config.precision in ("fp32", "bf16") and config.threads >= 1
    assert config.out.startswith("runs/")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["times=calls", "solver=heun"], "times=calls learns the times of solver=euler"),
        (["starts=3..5", "episodes=20"], "starts=3..5 names every start"),
    ],
)
def test_what_would_be_ignored_is_refused(words, said):
    with pytest.raises(CommandError, match=re.escape(said)):
        compose_config(words)


def test_the_same_words_train_the_same_on_every_device(monkeypatch):
    here = compose_config(["device=cpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    there = compose_config([])
    assert there.device == "cuda" and here.identity | {"device": "cuda", "precision": "bf16"} == there.identity


def test_a_run_of_a_gpu_is_continued_on_one_alone_and_on_any(tmp_path, monkeypatch):
    config = compose_config(["device=cpu", f"out={tmp_path}"])
    (tmp_path / "config.yaml").write_text(replace(config, device="cuda:3", precision="fp32").to_yaml())
    with pytest.raises(CommandError, match="was trained on device=cuda:3, and no CUDA device is visible here"):
        compose_config([f"resume={tmp_path}"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compose_config([f"resume={tmp_path}"]).identity["device"] == "cuda"
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compose_config([f"resume={tmp_path}"]).device == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CommandError, match="more processes than this machine's 1 GPUs; start one process per GPU"):
        compose_config([f"resume={tmp_path}"])


def test_options_that_decide_nothing_are_known():
    """They are left out of the plan, and change no run that has none of what they need."""
    blind, own = compose_config(["noise=vanilla"]), compose_config(["task=none", "obs=qpos", "noise=knn", "data=x"])
    assert {"crop", "select_for", "teacher_calls", "mirror_batches", "epochs"} < blind.unused
    assert not {"episodes", "starts", "horizon", "method"} & blind.unused
    assert {"episodes", "starts", "residual_mean"} < own.unused and not {"crop", "select_for"} & own.unused
    assert not {"crop", "images"} & compose_config(["obs=image"]).unused
    assert "residual_mean" not in compose_config(["noise=knn", "select_for=residual"]).unused


def test_paper_scale_is_the_published_network_schedule_and_sampler():
    """65.8 M parameters; 3,000 epochs, a checkpoint every 50; DDPM over all 100 steps of the chain."""
    paper, cpu = compose_config(["scale=paper"]), compose_config(["scale=cpu"])
    assert (paper.epochs, paper.checkpoint_epochs) == (3000, 50)
    assert (paper.solver, paper.sampling_steps, paper.diffusion_steps) == ("ddpm", 100, 100)
    assert (paper.down_dims, paper.step_embed_dim, paper.lr) == ([256, 512, 1024], 256, 1e-4)
    assert (paper.warmup_steps, paper.batch_size, paper.keep) == (500, 256, "last+best")
    assert (paper.optimizer, cpu.optimizer, compose_config(["obs=image"]).optimizer) == ("adamw", "muon", "adamw")
    differing = {key for key in paper.identity if paper.identity[key] != cpu.identity[key]}
    assert (paper.method, paper.prediction, cpu.method) == ("diffusion", "epsilon", "flow")
    assert differing <= {"scale", "method", "prediction", "down_dims", "step_embed_dim", "optimizer", "lr", "steps",
                         "warmup_steps", "checkpoint_every", "epochs", "checkpoint_epochs", "eval_every", "keep",
                         "solver", "sampling_steps", "spacing"}  # fmt: skip


@pytest.mark.parametrize(("obs", "batch", "steps", "every"), [("keypoints", 256, 126_000, 2_100),
                                                              ("image", 64, 504_000, 8_400)])  # fmt: skip
def test_epochs_become_steps_on_any_data(obs, batch, steps, every):
    """Of the published split's 10,752 windows at most 42 batches of 256, or 168 of 64; the last one may be smaller."""
    paper = compose_config([f"obs={obs}", "scale=paper"])
    published = paper.sized(10_700)
    assert (published.steps, published.checkpoint_every, published.eval_every) == (steps, every, every)
    small = paper.sized(batch + 1)  # two batches an epoch
    assert (small.steps, small.checkpoint_every) == (6_000, 100)
    assert small.is_sized and small.sized(9) is small


def test_a_word_decides_how_long_a_training_is_and_an_experiment_goes_before_the_scale():
    assert compose_config(["scale=paper", "steps=70"]).sized(10_700).checkpoint_every == 70
    assert compose_config(["scale=cpu", "epochs=2"]).sized(1_000).steps == 8
    demo = compose_config(["scale=paper", "experiment=demo"])
    assert (demo.steps, demo.epochs, demo.solver, demo.sampling_steps) == (1_600, None, "euler", 5)
    refused = {"epochs=2 steps=3": "epochs=2: steps=3 is given", "steps=null": "give a number", "steps=0": "needs"}
    for words, message in refused.items():
        with pytest.raises(CommandError, match=message):
            compose_config(words.split())


def test_paper_scale_of_images_is_the_published_network():
    paper = compose_config(["obs=image", "scale=paper"])
    assert (paper.down_dims, paper.step_embed_dim, paper.batch_size) == ([512, 1024, 2048], 128, 64)
    assert (paper.encoder_width, paper.crop, paper.lr, paper.warmup_steps) == (64, 84, 1e-4, 500)
    assert compose_config(["obs=image", "experiment=debug"]).down_dims == [16, 32]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("obs", ["keypoints", "state", "image"])
@pytest.mark.parametrize("noise", sorted(SELECTORS))
def test_every_combination_of_groups_composes(scale, obs, noise):
    config = compose_config([f"scale={scale}", f"obs={obs}", f"noise={noise}"])
    assert (config.scale, config.obs, config.noise["name"]) == (scale, obs, noise)
    noise_options(config.noise, steps=10_000, batch_size=256, steps_per_epoch=10)  # refuses what no selector takes


def test_every_configuration_file_is_covered():
    """Each file under configs/ is a base, a choice of a known group, or what two choices mean together."""
    files = {str(path.relative_to(config_dir())) for path in config_dir().rglob("*.yaml")}
    directories = {*SCHEMA.groups.values(), *IMAGES.groups.values()}
    choices = {f"{directory}/{name}.yaml" for directory in directories for name in group_choices(directory)}
    together = {f"obs_scale/image_{scale}.yaml" for scale in group_choices("robot_scale")}
    together |= {"method_scale/diffusion_paper.yaml", "init_scale/pretrained_paper.yaml"}
    together |= {f"recipe_scale/{name}.yaml" for name in ("ct_cpu", "ct_paper", "ict_paper")}
    together |= {f"model_scale/{model}_{scale}.yaml" for model in group_choices("model")
                 for scale in group_choices("image_scale")}  # fmt: skip
    shared = {"network/small.yaml", "network/image_cpu.yaml", "network/image_paper.yaml"}
    own = {"noise/linear.yaml", "noise/idp26.yaml"}
    own |= {f"noise_model/knn_{model}.yaml" for model in group_choices("model")}
    assert files == choices | together | shared | own | {"run.yaml", "robot.yaml", "image.yaml"}
    for group in SCHEMA.groups:  # image_experiment/ has grids of images
        for name in group_choices(group):
            compose_config([f"{group}={name}"])


def test_a_home_directory_is_expanded():
    assert not compose_config(["out=~/x"]).out.startswith("~")


def test_words_beat_the_experiment_and_the_experiment_beats_the_scale():
    assert compose_config(["experiment=debug"]).steps == 20
    assert compose_config(["experiment=debug", "steps=30"]).steps == 30
    assert compose_config(["experiment=debug", "scale=cpu"]).lr == compose_config(["scale=cpu"]).lr


@pytest.mark.parametrize("path", ["a=b.zarr", "it's here", "x,y", "[odd]", "${home}", "back\\slash", "s p a c e"])
def test_paths_may_hold_anything(path):
    assert compose_config([f"data={path}", f"out={path}"]).data == str(Path(path).absolute())


def test_options_survive_the_run_directory(tmp_path):
    config = compose_config(["noise=knn", "k=7", "seed=0,3,7", "data=a=b", "train_episodes=90"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert SCHEMA.read(RunDirectory(tmp_path)) == config
    assert OmegaConf.load(tmp_path / "config.yaml").noise.k == 7


@pytest.mark.parametrize(
    ("text", "numbers"), [("5", [5]), ("0..2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("1,4..5", [1, 4, 5])]
)
def test_ranges(text, numbers):
    assert parse_range("seed", text) == numbers


@pytest.mark.parametrize("text", ["2..0", "", "a", "-1", "1,,2", "0..", "1,1", "1.5", "0..99999999"])
def test_ranges_that_are_none(text):
    with pytest.raises(CommandError, match="seed="):
        parse_range("seed", text)


def test_what_is_accepted_exists():
    """The options are checked before anything heavy is imported, so their choices are written out there."""
    from immiscible_policy.network.unet import KERNELS
    from immiscible_policy.solver import Solver
    from immiscible_policy.training.engine import ENGINES

    for name in ("ddim", "ddpm", "dpmpp", "renoise"):
        assert Solver(name, 1).name == compose_config([f"sampler={name}"]).solver
    assert [compose_config([f"engine={name}"]).engine for name in ENGINES] == list(ENGINES)
    assert [compose_config([f"kernels={name}"]).kernels for name in KERNELS] == list(KERNELS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stepz=3"], "unknown option 'stepz'; did you mean 'steps'"),
        (["noise=kn"], "unknown noise 'kn'; did you mean 'knn'?"),
        (["scale=big"], "unknown scale 'big'"),
        (["obs=pixels"], "pixels"),
        (["k=2"], "k=2: noise=vanilla has no k"),
        (["nosie=knn", "k=2"], "unknown option 'nosie'"),
        (["noise=linear", "k=2"], "noise=linear has no k"),
        (["noise=knn", "k=two"], "k=two"),
        (["noise=knn", "k=0"], "k=0"),
        (["steps=-1"], "steps=-1"),
        (["steps=ten"], "steps=ten: not a whole number"),
        (["steps=1.5"], "steps=1.5: not a whole number"),
        (["lr=fast"], "lr=fast: not a number"),
        (["lr=0"], "lr=0"),
        (["lr=nan"], "lr=nan"),
        (["mirror=perhaps"], "mirror=perhaps: use true or false"),
        (["down_dims=64"], "down_dims=64: not a list"),
        (["down_dims=[64,"], "down_dims=[64,"),
        (["steps=3", "steps=4"], "steps= is given twice"),
        (["steps"], "'steps' is not key=value"),
        (["device=tpu"], "device=tpu"),
        (["precision=int8"], "unknown precision 'int8'"),
        (["keep=none"], "unknown keep 'none'"),
        (["sampler=rk4"], "unknown solver 'rk4'"),
        (["solver=ddim", "sampler=ddim"], "sampler= is given twice (it is solver=)"),
        (["method=flw"], "unknown method 'flw'; did you mean 'flow'?"),
        (["prediction=noise"], "unknown prediction 'noise'"),
        (["spacing=even"], "unknown spacing 'even'"),
        (["eta=2"], "eta=2.0: needs 0 to 1"),
        (["sampling_steps=0"], "sampling_steps=0: needs 1 to 100,000"),
        (["engine=warp"], "unknown engine 'warp'"),
        (["data_scale=0"], "data_scale=0"),
        (["betas=[0.9]"], "betas=[0.9]"),
        (["accumulate=500"], "accumulate=500"),
        (["train_episodes=0"], "train_episodes=0"),
        (["down_dims=64,128"], "down_dims=64,128: not a list"),
        (["steps=99999999999"], "steps=99999999999"),
        (["weight_decay=nan"], "weight_decay=nan"),
        (["groups=0"], "groups=0"),
        (["down_dims=[-64]"], "down_dims=[-64]"),
        (["starts=5000000000"], "starts=5000000000"),
        (["data="], "data= is empty"),
        (["+new=1"], "unknown option '+new'"),
        (["hydra.run.dir=x"], "unknown option 'hydra.run.dir'"),
    ],
)
def test_mistakes_name_the_value(words, message):
    from immiscible_policy.recipes.robot import RobotRecipe

    with pytest.raises(ValueError) as error:
        RobotRecipe.prepare(compose_config(words))
    assert message in str(error.value) and "\n" not in str(error.value)
