"""A recipe that is neither robot nor image: a line fitted to four points, whose preparations are counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.recipes.robot_config import SCHEMA
from immiscible_policy.training.duration import Rehearsal
from immiscible_policy.training.memory import Footprint
from immiscible_policy.training.recipe import Work
from immiscible_policy.training.seed import weights_of

WORDS = ("steps=6", "batch_size=4", "checkpoint_every=2", "eval_every=3", "log_every=2", "warmup_steps=1", "threads=1",
         "precision=fp32", "wandb=disabled", "device=cpu")  # fmt: skip


class Inputs(NamedTuple):
    x: Tensor
    absent: None


class Points(NamedTuple):
    """A batch within a batch, with a part that is absent."""

    inputs: Inputs
    y: Tensor


@dataclass
class Line:
    model: torch.nn.Module
    seed: int

    def batches(self, step: int) -> list[Points]:
        x = torch.randn(4, 1, generator=torch.Generator().manual_seed(100 * self.seed + step))
        return [Points(Inputs(x, None), 3 * x + 1)]

    def loss(self, batch: Points) -> Tensor:
        return (self.model(batch.inputs.x) - batch.y).square().mean()


@dataclass(frozen=True)
class ToyRecipe:
    config: Any
    schema: ClassVar = SCHEMA
    shown: ClassVar = {"slope": "slope {:.1f}"}

    @classmethod
    def prepare(cls, config) -> ToyRecipe:
        if not Path(config.data).exists():
            raise ValueError(f"data={config.data}: there is nothing")
        with open(config.data, "a") as counted:
            counted.write("prepared\n")
        return cls(config)

    @property
    def data(self) -> dict[str, Any]:
        return {"path": self.config.data, "content_hash": "f" * 64}

    def describe(self) -> list[str]:
        return ["data:   four points"]

    @property
    def footprint(self) -> Footprint:
        return Footprint(parameters=2, activations=16, data=128)

    def rehearsal(self, device) -> Rehearsal:
        line = torch.nn.Linear(1, 1, device=device)
        return Rehearsal(list(line.parameters()), lambda rows: line(torch.zeros(rows, 1, device=device)), 1)

    def build(self, seed) -> Work:
        with weights_of(seed.number):
            model = torch.nn.Linear(1, 1)
        objective = Line(model, seed.number)
        return Work(model, objective, {"line": True}, lambda state: {"slope": model.weight.item()}, dict)

    @staticmethod
    def summarise(run) -> str:
        slopes = {seed: [row["slope"] for row in run.seed(seed).metrics() if "slope" in row] for seed in run.seeds()}
        run.write_summary({"slopes": slopes})
        return f"{len(slopes)} lines"
