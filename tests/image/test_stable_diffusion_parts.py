"""Stable Diffusion from and to disk: ready-made parts, checkpoints, pipelines for plain diffusers, refusals."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.image.spec import read_spec, spec_metadata
from immiscible_policy.image.stable_diffusion import build_stable_diffusion, find_pretrained, pinned, pretrained_hash
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.noise import make_selector
from immiscible_policy.path import Ddpm
from immiscible_policy.solver import Pndm, Solver
from immiscible_policy.store.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from immiscible_policy.training.state import TrainState
from tests.image.specs import tiny_stable_diffusion_spec

PROMPTS = ["cat", "a bird"]
THREE = Solver("ddim", 3)


@pytest.fixture
def directory(tmp_path):
    return tiny_stable_diffusion(tmp_path / "tiny", ["cat", "bird"])


@pytest.fixture
def spec(directory):
    return tiny_stable_diffusion_spec(directory)


def built(spec, seed=0):
    torch.manual_seed(seed)
    return build_stable_diffusion(spec)


def start(model, count=2):
    return torch.randn(count, *model.coder.shape, generator=torch.Generator().manual_seed(3))


def noised(model):
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    generator = torch.Generator().manual_seed(2)
    return model.noised(pixels, make_selector("knn", k=64), step=0, generator=generator, prompts=PROMPTS * 2)


def train_state(model):
    return TrainState(
        model, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=1, steps=9, ema_power=0.75, ema_max=0.99
    )


def test_from_scratch_the_weights_are_a_function_of_the_seed(spec):
    first, again, other = (built(spec, seed).denoiser.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


@pytest.mark.parametrize(("size", "side"), [(64, 8), (128, 16)])
def test_start_noises_and_the_pipelines_default_size_follow_from_the_images(spec, size, side):
    model = built(replace(spec, size=size))
    assert model.coder.shape == (4, side, side) and model.denoiser.config.sample_size == side


def test_fine_tuning_begins_at_the_pretrained_weights(spec, directory):
    tuned = built(replace(spec, init="pretrained")).denoiser.state_dict()
    stored = UNet2DConditionModel.from_pretrained(directory, subfolder="unet", low_cpu_mem_usage=False).state_dict()
    assert tuned.keys() == stored.keys() and all(torch.equal(tuned[name], stored[name]) for name in stored)
    (directory / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    built(spec)  # from scratch they are not needed
    with pytest.raises(ValueError, match="lacks unet/diffusion_pytorch_model.safetensors"):
        built(replace(spec, init="pretrained"))


def test_recomputed_activations_give_the_same_gradients(spec):
    gradients = []
    for checkpointing in (False, True):
        model = built(replace(spec, gradient_checkpointing=checkpointing)).train()
        model.loss(noised(model)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert model.denoiser.is_gradient_checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("data_scale", [1.0, 2.0])
def test_plain_diffusers_draws_the_same_images_from_what_was_saved(spec, tmp_path, data_scale):
    """Trained a few steps, and saved while the parameters share the training state's buffer."""
    model, ten = built(replace(spec, data_scale=data_scale, guidance=4.0)), Solver("ddim", 10)
    state = train_state(model)
    for _ in range(3):
        model.loss(noised(model)).backward()
        state.advance()
    with state.ema_weights():
        export_diffusers(model, tmp_path / "saved")
        ours = model.sample(start(model), ten, prompts=PROMPTS).images
        plain_ours = model.sample(start(model), ten).images
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    options = {"latents": start(model), "num_inference_steps": 10, "output_type": "pt"}
    theirs = pipeline(PROMPTS, guidance_scale=4.0, **options).images
    unconditional = pipeline(["", ""], guidance_scale=1.0, **options).images
    torch.testing.assert_close(theirs, (ours + 1) / 2, rtol=0, atol=1e-4)
    torch.testing.assert_close(unconditional, (plain_ours + 1) / 2, rtol=0, atol=1e-4)
    assert not torch.allclose(ours, plain_ours, atol=1e-2)
    assert pipeline.safety_checker is None and not list((tmp_path / "saved").rglob("*.bin"))
    assert model.coder.scale == pytest.approx(model.coder.vae.config.scaling_factor * data_scale)


def test_a_saved_pipeline_keeps_the_spacing_of_the_solver(spec, tmp_path):
    """Diffusers adds one to the leading steps of Stable Diffusion."""
    for solver, first in ((Solver("ddim", 10, "leading"), 901), (None, 999)):
        export_diffusers(built(spec), tmp_path / "saved", solver)
        scheduler = DiffusionPipeline.from_pretrained(tmp_path / "saved").scheduler
        scheduler.set_timesteps(10)
        assert scheduler.timesteps.tolist() == [*range(first, -1, -100)]


def test_a_saved_pipeline_draws_by_pndm_where_the_solver_is_pndm(spec, tmp_path):
    model = built(spec)
    export_diffusers(model, tmp_path / "saved", Pndm(10))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    options = {"latents": start(model), "num_inference_steps": 10, "output_type": "pt"}
    theirs = pipeline(["", ""], guidance_scale=1.0, **options).images
    torch.testing.assert_close(theirs, (model.sample(start(model), Pndm(10)).images + 1) / 2, rtol=0, atol=1e-4)


def test_pndm_needs_two_steps_and_one_fewer_than_the_chain():
    """It shifts the grid by one: a single step would start at time 1, where hardly any noise is expected."""
    path = Ddpm(100)
    assert len(Pndm(path.chain - 1).scheduler(path).timesteps) == path.chain
    with pytest.raises(ValueError, match="sampling_steps=1: solver=pndm needs 2 or more"):
        Pndm(1)
    with pytest.raises(ValueError, match=f"sampling_steps={path.chain}: the chain has {path.chain} diffusion steps"):
        Pndm(path.chain).scheduler(path)


def test_a_saved_text_encoder_keeps_the_published_names(spec, directory, tmp_path, capfd):
    """Libraries that are older than ours know no others, and would go on with random weights. Nothing is printed."""
    model = built(spec)
    capfd.readouterr()
    export_diffusers(model, tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    ours, published = (
        load_file(place / "text_encoder" / "model.safetensors") for place in (tmp_path / "saved", directory)
    )
    assert ours.keys() == published.keys() and all(name.startswith("text_model.") for name in ours)


def test_a_saved_pipeline_serves_as_pretrained_directory(spec, tmp_path):
    model = built(replace(spec, data_scale=2.0))
    export_diffusers(model, tmp_path / "saved")
    again = build_stable_diffusion(tiny_stable_diffusion_spec(tmp_path / "saved", init="pretrained"))
    ours, theirs = (one.sample(start(model), THREE, prompts=PROMPTS).images for one in (model, again))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def save(path, spec, **weights):
    save_checkpoint(path / "step_000001", spec_metadata(spec) | {"step": 1}, weights)
    return read_checkpoint(path / "step_000001")


def test_a_checkpoint_holds_the_unet_alone_and_rebuilds_the_model(spec, tmp_path):
    spec = pinned(replace(spec, guidance=2.0, prompt_dropout=0.1))
    trained, averaged = built(spec, 0), built(spec, 1)
    checkpoint = save(tmp_path, spec, model=trained.state_dict(), ema=averaged.state_dict())
    assert all(name.startswith("denoiser.") for name in checkpoint.tensors("ema"))
    model, result = load_image_model(checkpoint)
    assert result == spec and not model.training and model.guidance == 2.0
    expected = averaged.sample(start(model), THREE, prompts=PROMPTS)
    assert torch.equal(model.sample(start(model), THREE, prompts=PROMPTS).images, expected.images)


def test_the_hash_covers_what_does_not_train(spec, directory):
    first = pretrained_hash(directory)
    assert pinned(spec).pretrained_hash == first != spec.pretrained_hash
    (directory / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (directory / "README.md").write_text("nothing that is read")
    assert pretrained_hash(directory) == first
    for name in ("vae/config.json", "tokenizer/merges.txt", "text_encoder/model.safetensors", "unet/config.json"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b" ")
        assert pretrained_hash(directory) != first, name
        (directory / name).write_bytes(content)


def test_a_checkpoint_whose_parts_changed_is_refused_and_moved_ones_are_found(spec, directory, tmp_path):
    checkpoint = save(tmp_path, pinned(spec), ema=built(spec).state_dict())
    moved = shutil.move(directory, tmp_path / "moved")
    with pytest.raises(CheckpointError, match="step_000001 .*no such directory"):
        load_image_model(checkpoint)
    load_image_model(checkpoint, pretrained=str(moved))
    assert load_image_model(checkpoint, pretrained=str(moved))[1] == replace(
        read_spec(checkpoint), pretrained=str(moved)
    )
    file = tmp_path / "moved" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.013}))
    with pytest.raises(CheckpointError, match="is not, or no longer, what the model was trained with"):
        load_image_model(checkpoint, pretrained=str(moved))


def test_a_checkpoint_of_another_model_is_refused(spec, tmp_path):
    weights = built(spec).state_dict()
    save_checkpoint(tmp_path / "step_000001", {"image": {"model": "ddim"}, "step": 1}, {"ema": weights})
    with pytest.raises(CheckpointError, match="does not describe an image model"):
        load_image_model(read_checkpoint(tmp_path / "step_000001"))
    checkpoint = save(tmp_path, spec, ema=weights | {"denoiser.conv_in.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_image_model(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": "random"}, "init=random: choose scratch or pretrained"),
        ({"size": 40}, r"size=40: needs a multiple of 16 \(autoencoder 8 x U-Net 2\)"),
        ({"size": 0}, "size=0"),
        ({"frozen_precision": "fp16"}, "frozen_precision=fp16"),
        ({"pretrained": "/nowhere/at/all"}, "pretrained=/nowhere/at/all: no such directory"),
        ({"pretrained_hash": "0" * 64}, "is not, or no longer"),
    ],
)
def test_unusable_specs_are_refused(spec, change, message):
    with pytest.raises(ValueError, match=message) as refused:
        build_stable_diffusion(replace(spec, **change))
    assert "\n" not in str(refused.value)


def test_a_hub_id_that_cannot_be_had_says_what_to_download(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hf download nobody/nothing .*--local-dir DIR") as refused:
        find_pretrained("nobody/nothing", "scratch")
    assert "unet/config.json" in str(refused.value) and "unet/diffusion" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_files_are_named(directory):
    for name in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "tokenizer/tokenizer.json"):
        (directory / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="lacks vae/diffusion_pytorch_model.safetensors, tokenizer/vocab.json"):
        find_pretrained(str(directory), "scratch")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_weights_that_are_missing_in_a_file_are_refused(spec, directory, part):
    file = next((directory / part).glob("*.safetensors"))
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights of {part} are not in its file"):
        build_stable_diffusion(replace(spec, init="pretrained"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "9 channels in and 4 out, the autoencoder's latents have 4"),
        ({"cross_attention_dim": 64}, "attends to 64 numbers per token, the text encoder gives 32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(spec, directory, change, message):
    file = directory / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        build_stable_diffusion(spec)
