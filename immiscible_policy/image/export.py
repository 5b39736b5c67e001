"""Image models for plain diffusers: a pipeline's directory with safetensors weights, and a README on how to sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from immiscible_policy.image.build import Model, Spec, UnconditionalModel
from immiscible_policy.image.consistency import ConsistencyModel
from immiscible_policy.image.diffusion import STEPS, ImageDiffusion
from immiscible_policy.image.flow import TIME_SCALE

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


def export_diffusers(model: Model, spec: Spec, directory: Path | str) -> None:
    """Write a model, with the weights it holds now, as a directory that plain diffusers loads.

    ddim          `DDIMPipeline`: eta = 0 and the steps of `ImageDiffusion.sample`.
    consistency   `ConsistencyModelPipeline`: one step, or several with fresh noise.
    flow          `DDPMPipeline`, diffusers' bare loop over network and scheduler, with an Euler scheduler of flow
                  matching whose times run from noise (0) to image (1), as the network was trained.
    sd            `StableDiffusionPipeline`; see `save_pipeline`.

    Args:
        model: What is written; its EMA weights are the ones wanted.
        spec: Its sizes.
        directory: Created if absent; files of the same names are replaced.
    """
    if not isinstance(model, UnconditionalModel):
        from immiscible_policy.image.stable_diffusion import save_pipeline

        save_pipeline(model, directory)
        return
    export = _export(model)
    export.pipeline.save_pretrained(directory, safe_serialization=True)
    about = export._asdict() | {"pipeline": type(export.pipeline).__name__}
    call = export.call if spec.data_scale == 1 else SCALED.format(scale=spec.data_scale)
    text = README.format(**about | {"call": call}, size=spec.size, scale=spec.data_scale)
    (Path(directory) / "README.md").write_text(text)


def _export(model: UnconditionalModel) -> Export:
    unet: Any = model.denoiser
    scheduler: Any  # diffusers' pipelines are typed by classes that stand in for absent packages
    if isinstance(model, ImageDiffusion):
        scheduler = model.ddim(STEPS)
        return Export(
            title="DDIM",
            pipeline=DDIMPipeline(unet, scheduler),
            timesteps=f"pipeline.scheduler.set_timesteps({STEPS})",
            start="noise",
            seen="x",
            call=WHOLE.format(steps=STEPS),
        )
    if isinstance(model, ConsistencyModel):
        scheduler = model.scheduler()
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
