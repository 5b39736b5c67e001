"""`train_image.py` through the real command line, on two dozen images of 8 x 8."""

import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.train_grid import read_grid
from immiscible_policy.commands.train_image import main
from immiscible_policy.image.build import build_image_model, load_image_model
from immiscible_policy.image.spec import spec_metadata
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.recipes.image import ImageObjective, ImageRecipe, first_share, image_spec, solver
from immiscible_policy.recipes.image_config import SCHEMA
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.seed import initial_state, train_seed
from tests.image.folders import write_images
from tests.training.helpers import here, refused, tree

NETWORK = ("size=8", "channels=[8,16]", "attention=[false,true]", "groups=4", "head_channels=4")
SHORT = ("steps=6", "checkpoint_every=3", "batch_size=8", "warmup_steps=1", "log_every=3", "samples=4",
         "sampling_steps=2", "threads=1", "precision=fp32", "wandb=disabled")  # fmt: skip
TINY = (*NETWORK, *SHORT)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    write_images(root, "train", 12)
    return root


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A flow-matching run of one seed with dropout, in one go."""
    return train(tmp_path_factory.mktemp("runs") / "flow", images, *TINY, "model=flow", "dropout=0.2")


def train(out, images, *words):
    result = here("train_image.py", f"data={images}", f"out={out}", *words)
    assert result.returncode == 0, result.stderr
    return out


def weights(out, seed=0):
    last = RunDirectory(out).seed(seed).newest()
    return {name: (last.path / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")}


def test_a_run_directory_holds_what_is_promised(finished):
    names = tree(finished).keys()
    assert {"config.yaml", "provenance.json", "summary.json", "seed_0/metrics.jsonl"} <= names
    assert {f"seed_0/samples/step_{step:06d}.png" for step in (3, 6)} <= names
    assert {"seed_0/checkpoints/step_000006/ema.safetensors", "seed_0/diffusers/model_index.json"} <= names
    rows = [json.loads(line) for line in (finished / "seed_0/metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "fixed_loss" in row]
    assert [row["step"] for row in measured] == [3, 6] and measured[0]["fixed_loss"] != measured[1]["fixed_loss"]
    assert all(abs(row["noise/distance_percent"]) < 1e-6 for row in measured)  # of vanilla noise


class Stopped(Exception):
    pass


@pytest.mark.parametrize("words", [("model=flow", "dropout=0.2", "accumulate=2"),
                                   ("model=consistency", "recipe=ct", "metric=huber"),
                                   ("model=consistency", "dropout=0.3"),
                                   ("model=ddim", "noise=linear", "engine=eager")])  # fmt: skip
def test_a_training_cut_short_and_resumed_equals_one_in_one_go(words, images, tmp_path):
    """Batches, noise, flips and dropout are functions of seed and step."""

    def stop(event):
        if event.get("step", 0) == 6:
            raise Stopped

    runs = {}
    for name in ("whole", "cut"):
        config = SCHEMA.compose([*TINY, *words, f"data={images}", f"out={tmp_path / name}"])
        recipe = ImageRecipe.prepare(config)
        RunDirectory(tmp_path / name).begin(config.to_yaml(), {})
        if name == "cut":
            with pytest.raises(Stopped):
                train_seed(recipe, RunDirectory(tmp_path / name).seed(0), stop)
            assert len(RunDirectory(tmp_path / name).seed(0).checkpoints()) == 1
        train_seed(recipe, RunDirectory(tmp_path / name).seed(0), lambda event: None)
        runs[name] = weights(tmp_path / name)
    assert runs["cut"] == runs["whole"]


def test_both_engines_train_the_same(finished, images, tmp_path):
    eager = train(tmp_path / "eager", images, *TINY, "model=flow", "dropout=0.2", "engine=eager")
    assert weights(eager) == weights(finished)


def test_a_selector_changes_what_is_learned_and_nothing_that_is_drawn_beside_it(images, tmp_path):
    """Vanilla and linear give a batch the same noises, paired otherwise: the same times, the same set of noises."""
    batches = {}
    for noise in ("vanilla", "linear"):
        config = SCHEMA.compose([*TINY, "model=ddim", f"noise={noise}", f"data={images}", f"out={tmp_path / noise}"])
        recipe = ImageRecipe.prepare(config)
        objective = ImageObjective(recipe.model(0), recipe.images, recipe.noise.select,
                                   batch_size=8, seed=0, accumulate=1, flip=True)  # fmt: skip
        (batches[noise],) = objective.batches(2)
    vanilla, linear = batches["vanilla"], batches["linear"]
    assert torch.equal(vanilla.t, linear.t) and not torch.equal(vanilla.target, linear.target)
    rows = [noise.flatten(1)[:, 0].sort().values for noise in (vanilla.target, linear.target)]
    assert torch.equal(*rows)


def test_plain_diffusers_loads_the_averaged_weights(finished):
    checkpoint = RunDirectory(finished).seed(0).newest()
    model, _ = load_image_model(checkpoint)
    pipeline = DiffusionPipeline.from_pretrained(str(finished / "seed_0/diffusers"))
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(weight, model.denoiser.state_dict()[name]), name


def test_plain_diffusers_finds_the_grid_that_the_run_sampled_with(images, tmp_path):
    out = train(tmp_path / "ddim", images, *TINY, "model=ddim", "solver=ddim", "spacing=leading")
    scheduler = DiffusionPipeline.from_pretrained(str(out / "seed_0/diffusers")).scheduler
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == [*range(980, -1, -20)]


def test_stable_diffusion_trains_at_a_tiny_size_and_plain_diffusers_loads_it(images, tmp_path, monkeypatch):
    """Without pretrained= its parts are made on the spot, and kept in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("model=sd", "scale=cpu", "noise=knn", "k=64", *SHORT)
    out = train(tmp_path / "sd", images, *words)
    pipeline = DiffusionPipeline.from_pretrained(str(out / "seed_0/diffusers"))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    rows = [json.loads(line) for line in (out / "seed_0/metrics.jsonl").read_text().splitlines()]
    (last,) = [row for row in rows if row.get("step") == 6 and "fixed_loss" in row]
    assert last["noise/distance_percent"] < -0.5  # k = 64 at 64 numbers per latent
    assert (tmp_path / "cache/immiscible-policy/tiny-stable-diffusion/unet/config.json").is_file()
    wrong = (*words[:3], "k=0", *SHORT, f"data={images}", f"out={tmp_path / 'wrong'}")
    assert "k=0" in refused(here("train_image.py", *wrong))  # one line, also once weights were loaded


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=gan"], "unknown model 'gan'"),
        (["model=flow", "metric=lpips"], "metric=lpips: model=flow has no metric"),
        (["model=sd", "scale=paper"], "pretrained= is missing"),
        (["model=sd", "pretrained=/nowhere/at/all"], "/nowhere/at/all"),
        (["model=flow", "noise=c2ot"], "noise=c2ot: model=flow gives no condition"),
        (["model=sd", "pretrained=x", "noise=c2ot", "prompts=none"], "noise=c2ot: prompts=none gives no condition"),
        (["model=ddim", "sampling_steps=1001"], "sampling_steps=1001: the chain has 1000 diffusion steps"),
        (["model=ddim", "solver=heun"], "sampling_steps=2: solver=heun calls the network twice a step"),
        (["model=flow", "solver=ddim", "spacing=leading"], "spacing=leading: flow matching has no published grid"),
        (["model=flow", "eta=0.5"], "eta=0.5: solver=euler has no eta"),
        (["model=flow", "prediction=sample"], "prediction=sample: model=flow has no prediction"),
        (["model=consistency", "solver=ddim"], "solver=ddim: what this model learned is solved with renoise"),
        (["model=consistency", "sampling_steps=0"], "sampling_steps=0"),
        (["model=flow", "batch_size=1"], "batch_size=1"),
        (["model=flow", "size=10"], "size=10"),
        (["model=flow", "k=4"], "noise=vanilla has no k"),
        (["model=flow", "noise=knn", "k=0"], "k=0"),
        (["model=flow", "dataset=celeba", "size=64"], "CelebA"),
        (["model=consistency", "metric=ssim"], "metric=ssim"),
        (["model=ddim", "recipe=ct"], "recipe=ct: model=ddim has no recipe"),
        (["model=ddim", "solver=pndm"], "solver=pndm: bounds no pixels, so that model=sd alone has it"),
        (["model=flow", "clip_grad_norm=-1"], "clip_grad_norm=-1"),
        (["model=flow", "data=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(words, said, images, tmp_path):
    data = [f"data={images}"]
    network = () if "model=sd" in words or "size=10" in words else NETWORK
    named = {word.split("=")[0] for word in words}
    others = [word for word in (*network, *SHORT, *data) if word.split("=")[0] not in named]
    with pytest.raises((ValueError, OSError)) as mistake:
        ImageRecipe.prepare(SCHEMA.compose([*others, f"out={tmp_path / 'run'}", *words]))
    assert said in str(mistake.value) and "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
    line = refused(here("train_image.py", "model=flow", f"out={tmp_path / 'run'}"))
    assert "data= is missing" in line and "docs/images.md" in line and not (tmp_path / "run").exists()


def test_stable_diffusion_is_not_trained_on_beside_other_parts(images, tmp_path):
    """A resumed training would otherwise go on with latents of another autoencoder."""
    pretrained = tiny_stable_diffusion(tmp_path / "pretrained", ["bird", "cat"])
    words = ["model=sd", f"pretrained={pretrained}", "size=32", *SHORT, f"data={images}", f"out={tmp_path / 'run'}"]
    config = SCHEMA.compose(words)
    recipe = ImageRecipe.prepare(config)
    spec, state = recipe.spec, initial_state(config, recipe.model(0), 0)
    path = tmp_path / "run/seed_0/checkpoints/step_000003"
    save_checkpoint(path, spec_metadata(spec) | {"step": 3}, state.tensors())
    assert ImageRecipe.prepare(config).spec == spec
    file = pretrained / "tokenizer/merges.txt"
    file.write_text(file.read_text() + "b i\n")
    with pytest.raises(ValueError, match="step_000003 was trained beside other parts than pretrained= has now"):
        ImageRecipe.prepare(config)


def test_the_plan_says_when_the_average_will_not_forget_the_first_weights():
    """Decays multiply: 0.9999 at each of 20,000 steps leaves exp(-2)."""
    paper = ["model=flow", "scale=paper", "device=cpu", "data=x"]
    assert first_share(SCHEMA.compose([*paper, "steps=20000"])) == pytest.approx(0.1353, rel=5e-3)
    assert first_share(SCHEMA.compose(paper)) < 1e-8
    words = ["ema_power=1", "ema_max=0.999999", "steps=4"]
    assert first_share(SCHEMA.compose([*paper, *words])) == pytest.approx(1 / 2 * 2 / 3 * 3 / 4)
    for steps in (5_000, 20_000):
        assert first_share(SCHEMA.compose([*paper, "model=sd", "pretrained=y", f"steps={steps}"][1:])) < 1e-3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.features=foo", "unknown features 'foo'"),
        ("evaluation.samples=10", "evaluation.samples=10: the 96 features"),
        ("evaluation.calls=[1,0]", "sampling_steps=0"),
        ("evaluation.curve={flow:0}", "sampling_steps=0"),
        ("evaluation.spacing=leading", "evaluation.spacing=leading: no arm has model=ddim, whose published grid it is"),
    ],
)
def test_what_a_grid_cannot_measure_is_refused_before_it_trains(tmp_path, word, message):
    write_images(tmp_path / "cifar", "train", 50)
    words = ["experiment=figure5", "arms=flow_vanilla", *TINY, "seed=0", word]
    words += [] if "samples" in word else ["evaluation.samples=97"]
    with pytest.raises(ValueError, match=re.escape(message)):
        main([*words, f"data={tmp_path / 'cifar'}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out" / "flow_vanilla").exists()


def test_figure_5_is_a_grid_that_is_measured_against_steps_and_calls(tmp_path, capsys):
    """Two arms of one seed; a second time everything is finished and measured."""
    with pytest.raises(CommandError, match=r"unknown option 'evaluation.sample'"):
        read_grid(["experiment=figure5", "data=x", "evaluation.sample=9"], SCHEMA)
    measured = ["evaluation.samples=97", "evaluation.calls=[1,2]", "evaluation.curve={flow:2}"]
    words = ["experiment=figure5", "arms=flow_vanilla,flow_knn_k4", *TINY, "seed=0", *measured]
    words += [f"data={tmp_path / 'cifar'}", f"out={tmp_path}"]
    write_images(tmp_path / "cifar", "train", 50)
    main(words)
    figures = json.loads((tmp_path / "figure5.json").read_text())["flow"]
    assert list(figures["calls"]) == ["flow_vanilla", "flow_knn_k4"]
    seeds = figures["calls"]["flow_knn_k4"]["seeds"]["0"]
    assert list(seeds) == ["1", "2"] and seeds["1"] != seeds["2"]
    rows = figures["steps"]["runs"]["flow_knn_k4"]["rows"]
    assert [row["checkpoint"] for row in rows] == [3, 6] and rows[-1]["distance"] == seeds["2"]
    less = figures["calls"]["flow_knn_k4"]["difference"]["1"]["estimate"]
    assert less == pytest.approx(seeds["1"] - figures["calls"]["flow_vanilla"]["seeds"]["0"]["1"])
    assert "data:image/png;base64," in (tmp_path / "flow.html").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure5.png", "flow.png", "flow_samples.png"}
    before = {path: path.read_bytes() for path in tmp_path.rglob("frechet.csv")}
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert said.count("finished already") == 2 and said.count("measured before") == 8
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_figure_5_is_measured_on_the_published_grid_of_ddim_too(tmp_path):
    """As `eval_image.py spacing=leading` measures it, beside what was measured on the trailing grid."""
    write_images(tmp_path / "cifar", "train", 50)
    words = ["experiment=figure5", "arms=ddim_vanilla", *TINY, "seed=0", f"data={tmp_path / 'cifar'}"]
    words += [f"out={tmp_path}", "evaluation.samples=97", "evaluation.calls=[1,3]", "evaluation.curve={ddim:2}"]
    found = {}
    for spacing in ("trailing", "leading"):
        main([*words, f"evaluation.spacing={spacing}"])
        panel = json.loads((tmp_path / "figure5.json").read_text())["ddim"]
        seeds = panel["calls"]["ddim_vanilla"]["seeds"]["0"]
        assert list(seeds) == (["3"] if spacing == "leading" else ["1", "3"])  # one leading step visits t = 0 alone
        found[spacing] = seeds["3"]
        said = "2 leading sampling steps" if spacing == "leading" else "2 sampling steps"
        assert said in (tmp_path / "figure5.md").read_text()
    assert found["leading"] != found["trailing"]


def test_figure_5_has_the_published_k_of_every_model_and_five_seeds():
    """DDIM 8, flow matching 4, consistency 4; data scale 1 and 2; about a million parameters at scale=cpu."""
    arms = read_grid(["experiment=figure5", "data=x", "scale=cpu", "device=cpu"], SCHEMA).arms
    chosen = {(config.model, config.noise["k"]) for config in arms.values() if config.noise["name"] == "knn"}
    assert chosen == {("ddim", 8), ("flow", 4), ("consistency", 4)} and len(arms) == 19
    assert {config.data_scale for config in arms.values()} == {1, 2}
    assert {(config.seed, config.size, config.steps) for config in arms.values()} == {("0..4", 16, 10_000)}


def test_figure_5_is_measured_with_few_calls_and_with_many():
    written = read_grid(["experiment=figure5", "data=x", "scale=cpu", "device=cpu"], SCHEMA).evaluation
    assert written["calls"] == [1, 2, 3, 5, 10, 20, 50]


def test_figure_5_trains_as_long_as_published_at_paper_scale():
    arms = read_grid(["experiment=figure5", "data=x", "scale=paper", "device=cpu"], SCHEMA).arms
    lengths = {config.model: config.steps for config in arms.values()}
    assert lengths == {"ddim": 200_000, "flow": 200_000, "consistency": 400_000}
    shorter = read_grid(["experiment=figure5", "data=x", "scale=paper", "device=cpu", "steps=20000"], SCHEMA).arms
    assert {config.steps for config in shorter.values()} == {20_000}


def test_the_words_of_a_grid_are_those_of_its_arms():
    """A recipe that consistency models alone have."""
    words = ["experiment=figure5", "data=x", "device=cpu", "recipe=ct", "metric=huber"]
    arms = read_grid([*words, "arms=consistency_vanilla,consistency_linear"], SCHEMA).arms
    assert {config.recipe for config in arms.values()} == {"ct"}
    with pytest.raises(CommandError, match="model=ddim"):
        read_grid(words, SCHEMA)


def test_help_names_what_images_take():
    text = here("train_image.py", "--help").stdout
    assert "vanilla|knn|sign|linear|idp26|c2ot, or module:Class (default vanilla)" in text
    assert "options of noise=knn" in text
    assert "consistency|ddim|flow|sd" in text and "ema_max" in text and "guidance" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_run_of_another_setting_is_not_resumed(finished, images):
    before = tree(finished)
    words = (*TINY, "model=flow", "dropout=0.2", "resume=true", f"data={images}", f"out={finished}")
    assert "lr=0.5 differs" in refused(here("train_image.py", *words, "lr=0.5"))
    done = here("train_image.py", *words)
    assert done.returncode == 0 and "finished already" in done.stdout
    assert tree(finished) == before


@pytest.mark.parametrize(("words", "published"), [
    (["model=consistency", "recipe=ct"], {"optimizer": "radam", "lr": 4e-4, "batch_size": 512, "steps": 800_000,
                                          "metric": "lpips", "dropout": 0, "ema_max": 0.9999,
                                          "clip_grad_norm": None}),
    (["model=consistency"], {"recipe": "ict", "optimizer": "radam", "lr": 1e-4, "batch_size": 1_024, "steps": 400_000,
                             "metric": "huber", "dropout": 0.3, "ema_max": 0.99993}),
    (["model=ddim"], {"spacing": "leading", "optimizer": "adamw"}),
    (["model=sd", "pretrained=x"], {"weight_decay": 1e-2, "solver": "pndm", "sampling_steps": 20}),
])  # fmt: skip
def test_paper_scale_has_the_published_settings(words, published):
    config = SCHEMA.compose([*words, "scale=paper", "data=x"])
    assert {key: getattr(config, key) for key in published} == published


def test_ddim_visits_its_own_linear_grid_at_paper_scale():
    """0, 20, ..., 980, the noisiest first."""
    config = SCHEMA.compose(["model=ddim", "scale=paper", "data=x"])
    with torch.device("meta"):
        model = build_image_model(image_spec(config))
    plan = solver(config, model).plan(model.path)
    assert [step.t for step in plan] == list(range(980, -1, -20))


@pytest.mark.parametrize("model", ["ddim", "flow", "consistency", "sd"])
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_model_composes_at_every_scale(model, scale):
    config = SCHEMA.compose([f"model={model}", f"scale={scale}", "data=x", "pretrained=y"] if model == "sd" else
                            [f"model={model}", f"scale={scale}", "data=x"])  # fmt: skip
    assert (config.model, config.scale) == (model, scale)
    if model != "sd":
        with torch.device("meta"):
            build_image_model(image_spec(config))
