"""What the options of robots and of images share: the noise, and how it becomes data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from immiscible_policy.noise.registry import GROUP, SELECTORS
from immiscible_policy.training.options import Part, RunConfig, choice, number

NOISE = Part("noise", GROUP, SELECTORS, bare=True)
SYNONYMS = {"sampler": "solver"}


@dataclass(kw_only=True)
class DiffusionConfig(RunConfig):
    """Options of a training on noise and data."""

    noise: dict[str, Any]
    data_scale: float = number("(0, inf)")
    prediction: str = choice("epsilon", "sample", "v_prediction")
    solver: str | None = choice("ddim", "ddpm", "dpmpp", "euler", "heun", "renoise", "direct")
    spacing: str = choice("trailing", "leading")
    eta: float = number("[0, 1]")
