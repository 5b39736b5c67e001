"""Image models for plain diffusers: a pipeline's directory with safetensors weights, and a README on how to sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from immiscible_policy.image.model import ImageModel, PixelCoder
from immiscible_policy.path import Ddpm
from immiscible_policy.path.consistency import RHO, SAMPLING_LEVELS, SIGMA_MAX, SIGMA_MIN, Consistency
from immiscible_policy.path.flow import TIME_SCALE
from immiscible_policy.solver import Pndm, Solver

STEPS = 50  # Network calls of a saved pipeline of flow matching, and of others without a solver
README = """\
# {title}

{size}x{size} pixels, pixels times {scale:g} being what is noised (`data_scale`). Saved from immiscible-policy for plain
diffusers:

```python
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained(".")
noise = torch.randn(4, 3, {size}, {size}, generator=torch.Generator().manual_seed(0))

pipeline.scheduler.set_timesteps({timesteps})
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


def export_diffusers(model: ImageModel, directory: Path | str, solver: Solver | Pndm | None = None) -> None:
    """Write a model, with the weights it holds now, as a directory that plain diffusers loads.

    ddim          `DDIMPipeline`: eta = 0, number and spacing of the steps as the solver has them, else as our own.
    consistency   `ConsistencyModelPipeline`: one step, or several with fresh noise.
    flow          `DDPMPipeline`, diffusers' bare loop over network and scheduler, with an Euler scheduler of flow
                  matching whose times run from noise (0) to image (1), as the network was trained.
    sd            `StableDiffusionPipeline`, with PNDM if the solver is `Pndm`, else DDIM likewise; see
                  `save_pipeline`. With `leading` diffusers adds 1 to every time: 981, 961, ..., 1 for 980, 960, ..., 0.
    """
    chosen = solver or model.solver
    spacing, steps = "trailing", STEPS
    if isinstance(chosen, Solver):
        spacing, steps = chosen.spacing, chosen.steps
    path, unet, limit = model.path, model.denoiser, model.coder.limit
    if not isinstance(model.coder, PixelCoder):
        from immiscible_policy.image.stable_diffusion import save_pipeline

        assert isinstance(path, Ddpm)
        own = chosen.scheduler(path) if isinstance(chosen, Pndm) else ddim_scheduler(path, None, spacing)
        return save_pipeline(model, own, directory)
    pipeline: Any  # diffusers' pipelines are typed by classes that stand in for absent packages
    lines = {"start": "noise", "seen": "x"}
    if isinstance(path, Ddpm):
        if spacing == "trailing":  # diffusers steps by whole numbers of the chain, and would leave the grid
            steps = max(n for n in range(1, min(steps, path.chain) + 1) if path.chain % n == 0)
        pipeline = DDIMPipeline(unet, ddim_scheduler(path, limit, spacing))  # type: ignore[arg-type]
        lines |= {"title": "DDIM", "timesteps": str(steps), "call": WHOLE.format(steps=steps)}
    elif isinstance(path, Consistency):
        scheduler: Any = CMStochasticIterativeScheduler(
            num_train_timesteps=SAMPLING_LEVELS,
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            sigma_data=path.sigma_data,
            rho=RHO,
            clip_denoised=limit == 1,
        )
        pipeline = ConsistencyModelPipeline(unet, scheduler)  # type: ignore[arg-type]
        lines["start"] = "noise * pipeline.scheduler.init_noise_sigma"
        lines["seen"] = "pipeline.scheduler.scale_model_input(x, t)"
        lines |= {"title": "Consistency model", "timesteps": "1", "call": WHOLE.format(steps=1)}
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TIME_SCALE), invert_sigmas=True)
        pipeline = DDPMPipeline(unet, scheduler)  # type: ignore[arg-type]
        grid = f"sigmas=[1 - i / {STEPS} for i in range({STEPS})]"
        lines |= {"title": "Flow matching", "timesteps": grid, "call": UNEVEN}
    pipeline.save_pretrained(directory, safe_serialization=True)
    scale, name = model.coder.data_scale, type(pipeline).__name__
    if scale != 1:
        lines["call"] = SCALED.format(scale=scale)
    text = README.format(**lines, pipeline=name, size=model.coder.size, scale=scale)
    (Path(directory) / "README.md").write_text(text)


def ddim_scheduler(path: Ddpm, limit: float | None, spacing: str = "trailing") -> DDIMScheduler:
    """The diffusers scheduler that steps as our `ddim` of a spacing; `limit` bounds clean numbers, None not."""
    config: Any = path.noising.config
    chain = {key: config[key] for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")}
    clip: dict[str, Any] = {"clip_sample": limit is not None, "clip_sample_range": 1.0 if limit is None else limit}
    offset = int(limit is None)  # diffusers insists on 1 for Stable Diffusion; trailing steps know no offset
    grid: dict[str, Any] = {"timestep_spacing": spacing, "steps_offset": offset}
    return DDIMScheduler(**chain, **clip, **grid, prediction_type=path.prediction)
