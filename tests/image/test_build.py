"""Image models from sizes: the published layouts, what is refused, checkpoints."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from immiscible_policy.image.build import build_image_model, load_image_model
from immiscible_policy.image.spec import spec_metadata
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Consistency, Ddpm, Flow
from immiscible_policy.store.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from tests.image.specs import tiny_spec
from tests.random_numbers import generator

TINY = tiny_spec()
SPECS = {
    "ddim": tiny_spec(data_scale=2.0, dropout=0.1, layout="ddpm", head_channels=16, diffusion_steps=100),
    "flow": tiny_spec("flow", head_channels=4),
    "consistency": tiny_spec("consistency", dropout=0.3, data_scale=0.5),
}
PATHS = {"ddim": Ddpm, "flow": Flow, "consistency": Consistency}
EACH = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
CIFAR10 = tiny_spec(
    size=32,
    channels=(128, 256, 256, 256),
    layers=2,
    attention=(False, True, False, False),
    groups=32,
    head_channels=256,
    dropout=0.1,
    layout="ddpm",
)
PUBLISHED = {  # what the configuration of google/ddpm-cifar10-32 says, where null heads mean a single one
    "act_fn": "silu",
    "block_out_channels": (128, 256, 256, 256),
    "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_layout_of_ddpm_for_cifar10():
    """35,746,307 parameters, one attention head, and every option of the published configuration."""
    with torch.device("meta"):
        unet = build_image_model(CIFAR10).denoiser
    assert parameters(unet) == 35_746_307
    assert {key: value for key, value in unet.config.items() if key in PUBLISHED} == PUBLISHED
    assert {block.heads for block in unet.modules() if hasattr(block, "heads")} == {1}
    assert {block.p for block in unet.modules() if isinstance(block, torch.nn.Dropout)} == {0.0, 0.1}


def test_the_layout_of_torchcfm_for_cifar10():
    """As many parameters as torchcfm's UNetModelWrapper at 128 channels x (1, 2, 2, 2): 35,746,307; heads of 64."""
    with torch.device("meta"):
        unet = build_image_model(replace(CIFAR10, model="flow", layout="diffusers", head_channels=64)).denoiser
    assert parameters(unet) == 35_746_307
    assert {block.heads for block in unet.modules() if hasattr(block, "heads")} == {4}


@pytest.mark.parametrize("recipe", ["ct", "ict"])
def test_a_copy_has_a_teacher_and_dropout_of_its_own(recipe):
    spec = tiny_spec("consistency", recipe=recipe, dropout=0.0 if recipe == "ct" else 0.3)
    model = build_image_model(spec).train()
    batch = model.noised(
        torch.rand(4, 3, 8, 8) * 2 - 1, make_selector("vanilla"), step=spec.training_steps - 1, generator=generator()
    )

    def loss(one):
        torch.manual_seed(0)
        return one.loss(batch).detach()

    with torch.no_grad():
        for parameter in model.parameters():  # the last convolution begins with zeros
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    before, twin = loss(model), deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(loss(twin), before) and not torch.equal(loss(model), before)


@EACH
def test_a_specs_model_takes_a_batch_and_gives_images(spec):
    model = build_image_model(spec)
    assert type(model.path) is PATHS[spec.model]
    assert model.coder.shape == (3, 8, 8) and model.coder.data_scale == spec.data_scale
    pixels = torch.rand(6, 3, 8, 8, generator=generator()) * 2 - 1
    batch = model.noised(pixels, make_selector("knn", k=2), step=3, generator=generator())
    assert [len(field) for field in batch] == [6] * len(batch)
    model.loss(batch).backward()
    assert all(p.grad is not None for p in model.parameters())
    result = model.eval().sample(torch.randn(2, *model.coder.shape, generator=generator()), model.choose(steps=2),
                                generator=generator())  # fmt: skip
    assert result.images.shape == (2, 3, 8, 8) and result.predicted.shape == (2, 2, 3, 8, 8) and len(result.t) == 2
    assert float(result.images.abs().max()) <= 1


@EACH
def test_the_rows_of_a_batch_do_not_know_each_other(spec):
    """The loss is the mean over parts of equal size; an image does not depend on the others drawn with it."""
    model = build_image_model(replace(spec, dropout=0.0)).eval()
    pixels = torch.rand(6, 3, 8, 8, generator=generator()) * 2 - 1
    batch = model.noised(pixels, make_selector("vanilla"), step=0, generator=generator())
    parts = [batch._make(field[rows] for field in batch) for rows in (slice(0, 3), slice(3, 6))]
    halves = torch.stack([model.loss(part) for part in parts]).mean()
    torch.testing.assert_close(model.loss(batch), halves, rtol=1e-4, atol=1e-5)
    noise = torch.randn(4, 3, 8, 8, generator=generator())
    once = model.choose(steps=1)
    parts = torch.cat([model.sample(part, once).images for part in noise.split(2)])
    torch.testing.assert_close(parts, model.sample(noise, once).images, rtol=1e-4, atol=1e-4)


@EACH
def test_a_checkpoint_rebuilds_the_model_with_its_ema_weights(spec, tmp_path):
    trained, averaged = build_image_model(spec), build_image_model(spec)
    tensors = {"model": trained.state_dict(), "ema": averaged.state_dict()}
    save_checkpoint(tmp_path / "step_000001", spec_metadata(spec) | {"step": 1}, tensors)
    model, result = load_image_model(read_checkpoint(tmp_path / "step_000001"))
    assert result == spec and type(model.path) is PATHS[spec.model]
    assert model.coder.data_scale == spec.data_scale and not model.training
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (None, "does not describe an image model"),
        ({"size": 8}, "does not describe an image model"),
        (spec_metadata(TINY)["image"] | {"colour": "red"}, "does not describe an image model"),
        (spec_metadata(replace(TINY, model="gan"))["image"], "model=gan"),
        (spec_metadata(replace(TINY, channels=(16, 16)))["image"], "do not fit"),
        (spec_metadata(replace(TINY, size="large"))["image"], "size is 'large'"),
    ],
)
def test_checkpoints_of_something_else_are_refused_in_one_line(recorded, message, tmp_path):
    metadata = {"step": 1} | ({} if recorded is None else {"image": recorded})
    save_checkpoint(tmp_path / "step_000001", metadata, {"ema": build_image_model(TINY).state_dict()})
    with pytest.raises(CheckpointError, match=message) as refused:
        load_image_model(read_checkpoint(tmp_path / "step_000001"))
    assert "\n" not in str(refused.value) and "step_000001" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gan"}, "model=gan: choose from ddim, flow, consistency"),
        ({"layout": "mine"}, "layout=mine"),
        ({"metric": "ssim"}, "metric=ssim"),
        ({"size": 9}, "size=9"),
        ({"size": 0}, "size=0"),
        ({"layers": 0}, "layers=0"),
        ({"channels": (), "attention": ()}, "channels="),
        ({"attention": (True,)}, "attention="),
        ({"channels": (8, 18)}, r"channels=\[18\]"),
        ({"head_channels": 3}, r"channels=\[16\].*head_channels=3"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"model": "consistency", "recipe": "ct", "training_steps": 9, "dropout": 0.3}, "dropout=0.3: recipe=ct"),
        ({"prediction": "noise"}, "prediction=noise"),
        ({"diffusion_steps": 0}, "diffusion_steps=0"),
        ({"model": "consistency"}, "training_steps=None"),
        ({"model": "consistency", "training_steps": 0}, "training_steps=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        build_image_model(replace(TINY, **change))
    assert "\n" not in str(refused.value)


@EACH
@pytest.mark.parametrize("data_scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_data_scale_that_is_no_positive_number_is_refused(spec, data_scale):
    with pytest.raises(ValueError, match="data_scale="):
        build_image_model(replace(spec, data_scale=data_scale))
