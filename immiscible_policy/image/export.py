"""Image models for plain diffusers: a pipeline's directory with safetensors weights, and a README on how to sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from immiscible_policy.image.model import ImageModel, PixelCoder
from immiscible_policy.path import Ddpm
from immiscible_policy.path.consistency import MOST_STEPS, RHO, SIGMA_MAX, SIGMA_MIN, Consistency
from immiscible_policy.path.flow import TIME_SCALE

STEPS = 50
"""Network calls of a saved pipeline."""
README = """\
# {title}

{size}x{size} pixels, pixels times {scale:g} being what is noised (`data_scale`). Saved from immiscible-policy for plain
diffusers:

```python
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained(".")
noise = torch.randn(4, 3, {size}, {size}, generator=torch.Generator().manual_seed(0))

{timesteps}
x = {start}
with torch.no_grad():
    for t in pipeline.scheduler.timesteps:
        predicted = pipeline.unet({seen}, t).sample
        x = pipeline.scheduler.step(predicted, t, x).prev_sample
images = (x / {scale:g}).clamp(-1, 1)  # pixels in [-1, 1]
```

{call}
"""
WHOLE = (
    "Or in one call, from the same noise: "
    "`pipeline(batch_size=4, num_inference_steps={steps}, generator=torch.Generator().manual_seed(0)).images`."
)
SCALED = (
    "Calling the pipeline itself gives wrong contrast: it cannot divide by {scale:g}, and clips before anybody else "
    "can. Use the lines above."
)
UNEVEN = (
    "`pipeline(batch_size=4, num_inference_steps=50).images` works too, over times that diffusers spaces otherwise (49 "
    "equal steps to t = 0.999 and one to 1), so that its images differ a little."
)


class Export(NamedTuple):
    """A model in diffusers' words, and the lines of the README that differ between methods.

    Attributes:
        title: Names the method.
        pipeline: Network and scheduler.
        timesteps: Sets the scheduler's steps.
        start: The start noise as the scheduler takes it.
        seen: What the network is shown of x.
        call: How the pipeline itself is called.
    """

    title: str
    pipeline: DiffusionPipeline
    timesteps: str
    start: str
    seen: str
    call: str


def export_diffusers(model: ImageModel, directory: Path | str) -> None:
    """Write a model, with the weights it holds now, as a directory that plain diffusers loads.

    ddim          `DDIMPipeline`: eta = 0 and the trailing steps of our own `ddim`.
    consistency   `ConsistencyModelPipeline`: one step, or several with fresh noise.
    flow          `DDPMPipeline`, diffusers' bare loop over network and scheduler, with an Euler scheduler of flow
                  matching whose times run from noise (0) to image (1), as the network was trained.
    sd            `StableDiffusionPipeline` with DDIM's trailing steps; see `save_pipeline`.

    Args:
        model: What is written; its EMA weights are the ones wanted.
        directory: Created if absent; files of the same names are replaced.
    """
    if not isinstance(model.coder, PixelCoder):
        from immiscible_policy.image.stable_diffusion import save_pipeline

        assert isinstance(model.path, Ddpm)
        save_pipeline(model, ddim_scheduler(model.path, None), directory)
        return
    export, scale = _export(model), model.data_scale
    export.pipeline.save_pretrained(directory, safe_serialization=True)
    about = export._asdict() | {"pipeline": type(export.pipeline).__name__}
    call = export.call if scale == 1 else SCALED.format(scale=scale)
    text = README.format(**about | {"call": call}, size=model.coder.size, scale=scale)
    (Path(directory) / "README.md").write_text(text)


def ddim_scheduler(path: Ddpm, limit: float | None) -> DDIMScheduler:
    """The diffusers scheduler that steps as our `ddim` does over trailing times.

    Args:
        path: The noising chain.
        limit: Largest magnitude of a clean number; None for any.
    """
    config: Any = path.noising.config
    chain = {key: config[key] for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")}
    clip: dict[str, Any] = {"clip_sample": limit is not None, "clip_sample_range": 1.0 if limit is None else limit}
    grid: dict[str, Any] = {"timestep_spacing": "trailing", "steps_offset": 1}
    return DDIMScheduler(**chain, **clip, **grid, prediction_type=path.prediction)


def consistency_scheduler(path: Consistency, limit: float) -> CMStochasticIterativeScheduler:
    """The diffusers scheduler of our levels and parametrisation; it clips to pixels of data_scale 1."""
    return CMStochasticIterativeScheduler(
        num_train_timesteps=MOST_STEPS,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=path.sigma_data,
        rho=RHO,
        clip_denoised=limit == 1,
    )


def _export(model: ImageModel) -> Export:
    unet: Any = model.denoiser
    scheduler: Any  # diffusers' pipelines are typed by classes that stand in for absent packages
    if isinstance(model.path, Ddpm):
        scheduler = ddim_scheduler(model.path, model.coder.limit)
        return Export(
            title="DDIM",
            pipeline=DDIMPipeline(unet, scheduler),
            timesteps=f"pipeline.scheduler.set_timesteps({STEPS})",
            start="noise",
            seen="x",
            call=WHOLE.format(steps=STEPS),
        )
    if isinstance(model.path, Consistency):
        scheduler = consistency_scheduler(model.path, model.coder.limit)
        return Export(
            title="Consistency model",
            pipeline=ConsistencyModelPipeline(unet, scheduler),
            timesteps="pipeline.scheduler.set_timesteps(1)",
            start="noise * pipeline.scheduler.init_noise_sigma",
            seen="pipeline.scheduler.scale_model_input(x, t)",
            call=WHOLE.format(steps=1),
        )
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TIME_SCALE), invert_sigmas=True)
    return Export(
        title="Flow matching",
        pipeline=DDPMPipeline(unet, scheduler),
        timesteps=f"pipeline.scheduler.set_timesteps(sigmas=[1 - i / {STEPS} for i in range({STEPS})])",
        start="noise",
        seen="x",
        call=UNEVEN,
    )
