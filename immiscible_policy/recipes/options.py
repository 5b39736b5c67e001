"""What the options of robots and of images share: the noise, and how it becomes data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from immiscible_policy.cli import CommandError
from immiscible_policy.noise.registry import GROUP, SELECTORS
from immiscible_policy.training.options import Part, RunConfig, choice, number

NOISE = Part("noise", GROUP, SELECTORS, bare=True)
SYNONYMS = {"sampler": "solver"}
ALONE = ("vanilla", "knn", "sign")
"""Selectors for which the other samples of a batch do not matter."""


@dataclass(kw_only=True)
class DiffusionConfig(RunConfig):
    """Options of a training on noise and data."""

    noise: dict[str, Any]
    select_over: int = number("[1, 1024]")
    data_scale: float = number("[1e-6, 1e6]")
    prediction: str | None = choice("epsilon", "sample", "v_prediction", "velocity")
    solver: str | None = choice("ddim", "ddpm", "dpmpp", "euler", "heun", "renoise", "direct", "pndm")
    spacing: str = choice("trailing", "shifted", "leading")
    eta: float = number("[0, 1]")

    @property
    def chosen_together(self) -> int:
        """Samples whose noise is chosen together."""
        return self.select_over * self.batch_size


def check_noise(config: DiffusionConfig) -> None:
    """Refuse to choose the noise of several batches together where a sample's noise depends on that sample alone."""
    name = config.noise["name"]
    if config.select_over > 1 and name in ALONE:
        why = f"noise={name} chooses for each sample alone"
        raise CommandError(f"select_over={config.select_over}: {why}; leave it out, or use noise=linear or c2ot")


def options_of(config: RunConfig, kind: type[Any]) -> dict[str, Any]:
    """Those options that are fields of a dataclass as well; lists become tuples."""
    values = {field.name: getattr(config, field.name) for field in fields(kind) if hasattr(config, field.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
