"""The options of `train_image.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from immiscible_policy.cli import CommandError
from immiscible_policy.training.options import (
    SYNONYMS,
    RunConfig,
    Schema,
    check_sampling,
    require_positive,
)

OF_MODEL = {
    "diffusion_steps": ("ddim",),
    "prediction": ("ddim",),
    "eta": ("ddim", "sd"),
    **dict.fromkeys(("solver", "spacing"), ("ddim", "flow", "sd")),
    "metric": ("consistency",),
    "lpips": ("consistency",),
    **dict.fromkeys(("channels", "layers", "attention", "groups", "head_channels", "dropout", "layout"),
                    ("ddim", "flow", "consistency")),
    **dict.fromkeys(("pretrained", "init", "prompts", "noise_offset", "prompt_dropout", "guidance",
                     "gradient_checkpointing", "frozen_precision"), ("sd",)),
}  # fmt: skip
"""Options that not every model has, and the models that have them."""


@dataclass
class ImageConfig(RunConfig):
    """Every option of `train_image.py`, after composition; configs/image.yaml and model/ say what each means."""

    model: str = "ddim"
    dataset: str = "cifar10"
    limit: int | None = None
    flip: bool = True
    size: int = 32
    channels: list[int] = field(default_factory=list)
    layers: int = 1
    attention: list[bool] = field(default_factory=list)
    groups: int = 8
    head_channels: int = 8
    dropout: float = 0.0
    layout: str = "diffusers"
    diffusion_steps: int = 1000
    metric: str = "huber"
    lpips: str | None = None
    pretrained: str | None = None
    init: str = "scratch"
    prompts: str = "own"
    noise_offset: float = 0.0
    prompt_dropout: float = 0.0
    guidance: float = 7.5
    gradient_checkpointing: bool = False
    frozen_precision: str = "fp32"
    prediction: str = "epsilon"
    samples: int = 64
    solver: str | None = None
    sampling_steps: int | None = None
    spacing: str = "trailing"
    eta: float = 0.0


def run_name(config: ImageConfig) -> str:
    """Model, data, noise."""
    parts = [config.model, config.dataset, str(config.size), config.noise["name"]]
    if "k" in config.noise:
        parts.append(f"k{config.noise['k']}")
    if config.data_scale != 1:
        parts.append(f"scale{config.data_scale:g}")
    return "_".join(parts)


def check(config: ImageConfig, given: Mapping[str, str]) -> None:
    """Refuse what only an image training has."""
    for key, models in OF_MODEL.items():
        if key in given and config.model not in models:
            raise CommandError(f"{key}={given[key]}: model={config.model} has no {key} ({' and '.join(models)} do)")
    if config.solver is None:
        config.solver = {"flow": "euler", "consistency": None}.get(config.model, "ddim")
    check_sampling(config)
    require_positive(config, ("size", "samples"))
    if config.batch_size < 2:
        raise CommandError(f"batch_size={config.batch_size}: needs 2 or more, as the audit of the noise does")
    if config.device != "cpu" and config.dropout > 0 and (config.parallel or 1) > 1:
        raise CommandError(
            f"parallel={config.parallel}: on a GPU seeds side by side would draw their dropout={config.dropout} from "
            "one random stream, and not repeatably; use parallel=1"
        )
    if config.sampling_steps is not None:
        require_positive(config, ("sampling_steps",))
    if config.data is None:
        raise CommandError(f"data= is missing: name where {config.dataset} lies (docs/images.md says what to download)")
    if config.model == "sd" and config.pretrained is None:
        raise CommandError("pretrained= is missing: model=sd needs a directory in diffusers' layout, or a hub id")
    if config.noise["name"] == "c2ot" and (config.model != "sd" or config.prompts == "none"):
        blind = f"model={config.model}" if config.model != "sd" else "prompts=none"
        raise CommandError(f"noise=c2ot: {blind} gives no condition to compare; use noise=linear")
    if config.noise.get("potentials") is True:
        raise CommandError("potentials=true: they are fitted to a policy's windows; leave the word out")


GROUPS = {"model": "model", "noise": "noise", "scale": "image_scale"}
SCHEMA = Schema("image", ImageConfig, GROUPS, run_name, check, SYNONYMS)
