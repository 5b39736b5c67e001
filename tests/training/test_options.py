"""The option system: files and schemas name the same keys, parts bring their own options, names tell runs apart."""

import re
from dataclasses import MISSING, fields

import pytest
import yaml

from immiscible_policy.cli import CommandError
from immiscible_policy.extensions import defaults
from immiscible_policy.noise import SELECTORS, find_selector
from immiscible_policy.recipes.image_config import SCHEMA as IMAGES
from immiscible_policy.recipes.robot_config import SCHEMA as ROBOTS
from immiscible_policy.training.options import COMMON, OF_GRIDS, config_dir, group_choices, read_file

SCHEMAS = pytest.mark.parametrize("schema", [ROBOTS, IMAGES], ids=["robots", "images"])
OWN = '''
import torch

class Cold:
    """Noise of another length.

    Attributes:
        temperature: Factor on the noise.
        steps: An option that the training has too.
    """

    def __init__(self, temperature=0.5, steps=3, source=torch.randn):
        self.temperature, self.steps = temperature, steps

    def __call__(self, x, *, condition=None, mask=None, step=None, generator=None):
        return self.temperature * torch.randn(x.shape, generator=generator)
'''


@pytest.fixture
def own_module(write_module):
    write_module("own_options", OWN)
    return "own_options:Cold"


@SCHEMAS
def test_files_and_schema_name_the_same_keys(schema):
    base = read_file(COMMON) | read_file(schema.base)
    for scale in group_choices(schema.groups["scale"]):
        named = base.keys() | read_file(f"{schema.groups['scale']}/{scale}").keys()
        networks = [read_file(f"network/{name}").keys() for name in group_choices("network")]
        named |= set().union(*networks) & schema.fields.keys()
        named |= {key for word, directory in schema.groups.items() if word not in ("scale", "experiment")
                  for name in group_choices(directory) for key in read_file(f"{directory}/{name}")}  # fmt: skip
        assert named == schema.fields.keys()


@SCHEMAS
def test_fields_have_no_defaults_of_their_own(schema):
    assert all(f.default is MISSING and f.default_factory is MISSING for f in fields(schema.config))


def test_every_file_names_known_options_only():
    known = {*ROBOTS.fields, *IMAGES.fields, *OF_GRIDS}
    for path in config_dir().rglob("*.yaml"):
        name = str(path.relative_to(config_dir()).with_suffix(""))
        if name.startswith("noise"):  # noise/linear, noise_model/knn_flow
            selector = path.stem.partition("_")[0]
            constructor = defaults(find_selector(selector))
            assert all(constructor[key] != value for key, value in read_file(name).items())  # said once
        else:
            assert read_file(name).keys() <= known, name


@SCHEMAS
@pytest.mark.parametrize("noise", SELECTORS)
def test_dotted_and_bare_words_are_the_same_option(schema, noise):
    for option, default in schema.parts[0].options(noise).items():
        words = [f"noise={noise}", *(["data=x", "model=sd", "pretrained=y"] if schema is IMAGES else [])]
        value = 7 if default is None else default
        dotted = schema.compose([*words, f"noise.{option}={value}"])
        assert dotted.noise[option] == value
        if option not in schema.fields:
            assert schema.compose([*words, f"{option}={value}"]) == dotted


def test_a_selector_from_elsewhere_brings_its_own_options(own_module):
    plain = ROBOTS.compose([f"noise={own_module}", "steps=9"])
    assert plain.noise == {"name": own_module, "temperature": 0.5, "steps": 3} and plain.steps == 9
    warm = ROBOTS.compose([f"noise={own_module}", "noise.temperature=2", "noise.steps=5", "steps=9"])
    assert warm.noise == {"name": own_module, "temperature": 2, "steps": 5} and warm.steps == 9
    assert warm.identity != plain.identity and warm.out != plain.out
    assert yaml.safe_load(warm.to_yaml())["noise"] == warm.noise


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noise=nowhere_at_all:Sel"], "No module named 'nowhere_at_all'"),
        (["noise=knn", "noise.temperature=2"], "temperature=2: noise=knn has no temperature; it takes k, nearest"),
        (["noise=knn", "k=2", "noise.k=4"], "k= is given twice (it is noise.k=)"),
        (["noise=linear", "noise.k=4"], "k=4: noise=linear has no k"),
        (["task=pusht", "task.goal=2"], "goal=2: task=pusht has no goal; it takes no options"),
        (["task=push"], "unknown task 'push'; did you mean 'pusht'?"),
        (["noise=knn", "k=2,4"], "k=2,4: takes one value here; train once for each"),
        (["lr=1e-3,1e-4"], "lr=1e-3,1e-4: takes one value here"),
        (["stepz=3"], "unknown option 'stepz'; did you mean 'steps' or 'stop'? see --help"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(CommandError) as refused:
        ROBOTS.compose(words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


BASE = ["noise=knn", "device=cpu"]
CHANGES = [
    [], ["k=4"], ["nearest=angle"], ["form=literal"], ["stop=9"], ["method=diffusion"], ["prediction=sample"],
    ["solver=heun"], ["sampling_steps=3"], ["spacing=leading"], ["eta=0.5"], ["mirror=true"], ["steps=9"],
    ["exclude=padding"], ["select_for=residual"],
    ["select_for=residual", "residual_mean=mlp"], ["method=diffusion", "select_at=0..9"], ["data_scale=2"],
    ["data=a/b.zarr"], ["obs=state"], ["obs=image"],
    ["experiment=debug"], ["down_dims=[8,16]"], ["clip_grad_norm=1"], ["scale=paper"], ["images=rendered", "obs=image"],
]  # fmt: skip


def test_runs_that_differ_have_directories_that_differ():
    outs = [ROBOTS.compose([*BASE, *words]).out for words in CHANGES]
    outs += [ROBOTS.compose(["noise=linear", *words]).out for words in ([], ["pool=2"], ["cost=sqeuclidean"])]
    outs += [IMAGES.compose(["data=x", "model=flow", *words]).out for words in ([], ["flip=false"], ["noise=knn"],
                                                                                ["noise=knn", "k=3"])]  # fmt: skip
    assert len(set(outs)) == len(outs) and all(out.startswith("runs/") for out in outs)


def test_a_directory_is_named_after_what_differs_from_the_defaults():
    def name(*words):
        return ROBOTS.compose([*words, "device=cpu"]).out

    assert name() == "runs/pusht_keypoints_vanilla_cpu"
    assert name("noise=knn", "k=2", "seed=0..2", "spacing=shifted") == "runs/pusht_keypoints_knn_cpu"
    words = ("noise=knn", "k=4", "method=diffusion", "mirror=true")
    assert name(*words) == "runs/pusht_keypoints_knn_k4_mirror_method-diffusion_cpu"
    images = IMAGES.compose(["model=flow", "data=a/x", "flip=false", "device=cpu"])
    assert images.out == "runs/flow_cifar10_vanilla_no-flip_x_cpu"


def test_long_names_are_cut_and_stay_apart():
    words = [f"data={'x' * 200}"], [f"data={'x' * 201}"]
    outs = [ROBOTS.compose(item).out for item in words]
    assert outs[0] != outs[1] and all(len(out) < 200 for out in outs)


def test_the_default_model_of_images_has_its_network():
    assert IMAGES.compose(["data=x", "scale=cpu"]) == IMAGES.compose(["data=x", "scale=cpu", "model=ddim"])
    assert IMAGES.compose(["data=x", "scale=cpu"]).channels == [32, 48, 64]


@pytest.mark.parametrize("schema", [ROBOTS, IMAGES])
def test_help_shows_every_option_once_and_what_most_people_use_first(schema):
    sections = [block.split("\n") for block in schema.help("usage:").split("\n\n")]
    keys = {head[:-1]: [line.split()[0] for line in lines if re.match(r"  \w", line)] for head, *lines in sections[1:]}
    shown = [key for title, own in keys.items() if "=" not in title for key in own]
    assert sorted(shown) == sorted({*schema.fields, *schema.groups})
    assert list(keys)[:2] == ["choices", "most used"] and len(keys["most used"]) <= 12


def test_help_has_the_options_of_a_class_from_elsewhere(own_module):
    text, plain = ROBOTS.help("usage:", [f"noise={own_module}", "--help"]), ROBOTS.help("usage:")
    assert f"options of noise={own_module}:\n" in text and "temperature  " in text and "noise.steps  " in text
    assert own_module not in plain
