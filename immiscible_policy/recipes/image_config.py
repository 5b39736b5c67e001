"""The options of `train_image.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from immiscible_policy.cli import CommandError
from immiscible_policy.image.spec import PROMPTED
from immiscible_policy.recipes.options import NOISE, SYNONYMS, DiffusionConfig, check_noise
from immiscible_policy.training.options import Schema, choice, number

OF_MODEL = {
    "diffusion_steps": ("ddim",),
    "prediction": ("ddim",),
    "recipe": ("consistency",),
    "metric": ("consistency",),
    **dict.fromkeys(("channels", "layers", "attention", "groups", "head_channels", "dropout", "layout"),
                    ("ddim", "flow", "consistency")),
    **dict.fromkeys(("pretrained", "init", "prompts", "noise_offset", "prompt_dropout", "guidance",
                     "gradient_checkpointing", "frozen_precision"), PROMPTED),
}  # fmt: skip
"""Options that not every model has, and the models that have them."""


@dataclass(kw_only=True)
class ImageConfig(DiffusionConfig):
    """Every option of `train_image.py`, after composition; configs/image.yaml says what each means."""

    model: str
    dataset: str
    limit: int | None = number("[1, 1e9]")
    flip: bool
    size: int = number("[1, 4096]")
    channels: list[int] = number("[1, 65536]")
    layers: int = number("[1, 64]")
    attention: list[bool]
    groups: int = number("[1, 65536]")
    head_channels: int = number("[1, 65536]")
    dropout: float = number("[0, 1)")
    layout: str
    diffusion_steps: int = number("[1, 1e5]")
    recipe: str | None = choice("ct", "ict")
    metric: str
    pretrained: str | None
    init: str
    prompts: str
    noise_offset: float = number("[0, 1e3]")
    prompt_dropout: float = number("[0, 1]")
    guidance: float = number("[0, 1e3]")
    gradient_checkpointing: bool
    frozen_precision: str
    sampling_steps: int | None = number("[1, 1e5]")
    samples: int = number("[1, 1e5]")

    @property
    def unused(self) -> set[str]:
        """Also the options of other models."""
        return super().unused | {key for key, models in OF_MODEL.items() if self.model not in models}


def fill(options: dict[str, Any]) -> None:
    """Choose what `ddim` predicts; a model knows how it is sampled best."""
    options["prediction"] = options["prediction"] or "epsilon"
    options["spacing"] = options["spacing"] or "trailing"


def check(config: ImageConfig, given: Mapping[str, str]) -> None:
    """Refuse options that do not go together."""
    for key, models in OF_MODEL.items():
        if key in given and config.model not in models:
            cure = f"leave it out, or use model={' or '.join(models)}"
            raise CommandError(f"{key}={given[key]}: model={config.model} has no {key}; {cure}")
    check_noise(config)
    if config.batch_size < 2:
        raise CommandError(f"batch_size={config.batch_size}: needs 2 or more, as the audit of the noise does")
    shared = config.device != "cpu" and config.dropout > 0
    if shared and config.parallel is None:
        config.parallel = 1
    if shared and config.parallel != 1:
        raise CommandError(
            f"parallel={config.parallel}: on a GPU parallel seeds would share one random stream for "
            f"dropout={config.dropout} and could not be reproduced; use parallel=1"
        )
    if config.data is None:
        raise CommandError(f"data= is missing: name where {config.dataset} lies (docs/images.md says what to download)")
    if config.model == "sd" and config.pretrained is None:
        raise CommandError("pretrained= is missing: model=sd needs a directory in diffusers' layout, a hub id, or tiny")
    if config.noise["name"] == "c2ot" and (config.model != "sd" or config.prompts == "none"):
        blind = f"model={config.model}" if config.model != "sd" else "prompts=none"
        raise CommandError(f"noise=c2ot: {blind} gives no condition to compare; use noise=linear")
    if config.noise.get("potentials") is True:
        raise CommandError("potentials=true: they are fitted to a policy's windows; leave it out")


SCHEMA = Schema(
    base="image",
    config=ImageConfig,
    groups={"model": "model", "scale": "image_scale", "experiment": "image_experiment"},
    parts=(NOISE,),
    title=("model", "dataset", "noise"),
    fill=fill,
    check=check,
    presets={
        "model_scale": ("model", "scale"),
        "recipe_scale": ("recipe", "scale"),
        "init_scale": ("init", "scale"),
        "noise_model": ("noise", "model"),
    },
    synonyms=SYNONYMS,
)
