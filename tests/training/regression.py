"""A toy that trains in no time: least squares."""

import random
import time
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.training.state import TrainState
from tests.random_numbers import generator


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Regression:
    """Least squares; a batch is a function of the step alone, prepared sooner or later."""

    def __init__(self, model: torch.nn.Module, parts: int = 1, slow: bool = False):
        self.model, self.parts, self.slow = model, parts, slow

    def batches(self, step: int) -> list[Pair]:
        if self.slow:
            time.sleep(random.uniform(0, 0.01))
        source = generator(step)
        fields = [torch.randn(shape, generator=source) for shape in ((8, 3), (8, 1))]
        return [Pair(*rows) for rows in zip(*(field.chunk(self.parts) for field in fields), strict=True)]

    def loss(self, batch: Pair) -> Tensor:
        return (self.model(batch.x) - batch.y).square().mean()


def make_model() -> torch.nn.Sequential:
    """Always the same weights."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def make_state(
    steps: int = 12, warmup: int = 4, lr: float = 1e-2, ema_max: float = 0.9999, optimizer: str = "adamw"
) -> TrainState:
    return TrainState(
        make_model(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, warmup_steps=warmup, steps=steps,
        ema_power=0.75, ema_max=ema_max, optimizer=optimizer,
    )  # fmt: skip
