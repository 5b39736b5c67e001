"""What plain diffusers makes of an exported model: the same samples, by the README's own lines."""

import json
import re
from dataclasses import replace

import diffusers
import pytest
import torch

from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.solver import Solver
from immiscible_policy.training.state import TrainState
from tests.image.specs import calm, tiny_spec

SPECS = {
    "ddim": tiny_spec(dropout=0.1, layout="ddpm", head_channels=16),
    "flow": tiny_spec("flow"),
    "consistency": tiny_spec("consistency", dropout=0.3),
}
PIPELINES = {"ddim": "DDIMPipeline", "flow": "DDPMPipeline", "consistency": "ConsistencyModelPipeline"}
STEPS = {"ddim": 50, "flow": 50, "consistency": 1}
NAMES = pytest.mark.parametrize("name", SPECS)


def start_noise(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def exported(name, directory, data_scale=1.0, solver=None):
    """A model in evaluation mode, and a directory with what it wrote; its samples reach beyond the range of pixels."""
    spec = replace(SPECS[name], data_scale=data_scale)
    model = calm(build_image_model(spec))
    export_diffusers(model, directory, solver)
    return model


def samples_of_the_readme(directory, monkeypatch):
    """What its lines draw in a namespace of their own, in the directory: they import nothing of this package."""
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert "immiscible" not in code
    monkeypatch.chdir(directory)
    result: dict = {}
    exec(code, result)
    return result["images"]


def samples_of_the_pipeline(directory, steps):
    """What calling the pipeline itself draws, (B, 3, S, S) in [-1, 1]."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(batch_size=4, num_inference_steps=steps, generator=generator, output_type="np").images
    return 2 * torch.tensor(drawn).permute(0, 3, 1, 2) - 1


@NAMES
@pytest.mark.parametrize("data_scale", [0.5, 1.0, 4.0])
def test_the_readmes_lines_give_the_models_samples(name, data_scale, tmp_path, monkeypatch):
    model = exported(name, tmp_path, data_scale)
    expected = model.sample(start_noise(), model.choose(steps=STEPS[name])).images
    torch.testing.assert_close(samples_of_the_readme(tmp_path, monkeypatch), expected, rtol=1e-3, atol=1e-3)
    assert ("gives wrong contrast" in (tmp_path / "README.md").read_text()) == (data_scale != 1)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 7), ("trailing", 8)])
def test_an_export_takes_the_steps_of_the_runs_solver(spacing, steps, tmp_path, monkeypatch):
    """The published 980, 960, ..., 0 or our 999, 979, ..., 19, by README and pipeline; the two grids differ."""
    solver = Solver("ddim", steps, spacing)
    model = exported("ddim", tmp_path, solver=solver)
    expected = model.sample(start_noise(), solver).images
    other = model.sample(start_noise(), replace(solver, spacing="trailing" if spacing == "leading" else "leading"))
    assert (expected - other.images).abs().max() > 0.01
    torch.testing.assert_close(samples_of_the_readme(tmp_path, monkeypatch), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(samples_of_the_pipeline(tmp_path, steps), expected, rtol=1e-3, atol=1e-3)
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [step.t for step in solver.plan(model.path)]


def test_a_number_of_steps_that_diffusers_cannot_take_evenly_is_not_written(tmp_path, monkeypatch):
    """Of 1,000 steps it visits every 142nd for seven calls, and would end elsewhere than our trailing grid: so five."""
    model = exported("ddim", tmp_path, solver=Solver("ddim", 7))
    expected = model.sample(start_noise(), Solver("ddim", 5)).images
    torch.testing.assert_close(samples_of_the_readme(tmp_path, monkeypatch), expected, rtol=1e-3, atol=1e-3)


@NAMES
def test_diffusers_finds_pipeline_and_safe_weights(name, tmp_path):
    exported(name, tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == PIPELINES[name]
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.pt")]
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path)).__name__ == PIPELINES[name]


@pytest.mark.parametrize("name", ["ddim", "consistency"])
def test_the_pipeline_itself_gives_the_same_samples(name, tmp_path):
    model = exported(name, tmp_path)
    expected = model.sample(start_noise(), model.choose(steps=STEPS[name])).images
    torch.testing.assert_close(samples_of_the_pipeline(tmp_path, STEPS[name]), expected, rtol=1e-3, atol=1e-3)


def test_the_consistency_pipeline_takes_several_steps_alike(tmp_path):
    """From the same generator: first the start noise, then the fresh noise of each step."""
    model = exported("consistency", tmp_path)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(batch_size=4, num_inference_steps=4, generator=generator, output_type="np").images
    images = 2 * torch.tensor(drawn).permute(0, 3, 1, 2) - 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 8, 8, generator=generator)
    expected = model.sample(noise, model.choose(steps=4), generator=generator).images
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_the_flow_pipeline_follows_times_that_diffusers_spaces(tmp_path):
    """49 equal steps to t = 0.999 and one of 0.001, as the README says."""
    model = exported("flow", tmp_path)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(batch_size=4, num_inference_steps=50, generator=generator, output_type="pt").images
    x, times = start_noise(), [*torch.linspace(0, 0.999, 50).tolist(), 1.0]
    with torch.no_grad():
        for t, following in zip(times[:-1], times[1:], strict=True):
            x = x + (following - t) * model.network()(x, torch.full((4,), 1000 * t))
    images = torch.as_tensor(2 * drawn - 1)
    images = images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)
    torch.testing.assert_close(images, x.clamp(-1, 1), rtol=1e-3, atol=1e-3)


def test_a_model_in_training_exports_its_ema_weights(tmp_path):
    """The weights of a training share one buffer; what is written are the numbers of the moment."""
    model = build_image_model(SPECS["flow"])
    state = TrainState(
        model, lr=1.0, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=1, steps=10, ema_power=0.75, ema_max=0.999
    )
    for p in state.parameters:
        p.grad = torch.ones_like(p)
    state.advance()
    state.advance()
    with state.ema_weights():
        export_diffusers(model, tmp_path)
    written = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet").state_dict()
    for name, tensor in state.ema_state().items():
        assert torch.equal(written[name.removeprefix("denoiser.")], tensor), name
