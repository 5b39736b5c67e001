"""The toy's network: trained on a path between noise and a mixture in the plane, then solved from noise to data.

Shape legend: N points, C numbers of condition, S points along a path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.lab.mixture import Mixture
from immiscible_policy.noise import Selector
from immiscible_policy.path import Path, PathSample
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.solver import Solver, solve
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.state import TrainState

FREQUENCIES = 4
TIMES = 1000.0
"""Largest time that a path tells the network."""


class Net(nn.Module):
    """Three hidden layers on position, time and a condition of C numbers."""

    def __init__(self, conditions: int, width: int = 128) -> None:
        super().__init__()
        sizes = [2 + 2 * FREQUENCIES + conditions, width, width, width]
        hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The output (N, 2) for points (N, 2), times (N,) from 0 to `TIMES`, and conditions (N, C)."""
        angles = math.pi / 2 * t[:, None] / TIMES * 2.0 ** torch.arange(FREQUENCIES)
        return self.layers(torch.cat([noisy, angles.cos(), angles.sin(), condition], dim=1))


class Batch(NamedTuple):
    """Points on their paths, and their conditions (N, C)."""

    sample: PathSample
    condition: Tensor


@dataclass(frozen=True)
class ToyObjective:
    """The path's loss on batches of a mixture; each batch is a function of (seed, step)."""

    net: Net
    path: Path
    mixture: Mixture
    select: Selector
    batch_size: int
    seed: int

    def batches(self, step: int) -> list[Batch]:
        """The batch of a training step."""
        generator = torch_generator("cpu", "toy", self.seed, step)
        x, modes = self.mixture.sample(self.batch_size, generator)
        condition = self.mixture.one_hot(modes)
        t = self.path.times(len(x), generator, step=step)
        noise = self.select(x, condition=condition if condition.numel() else None, step=step, generator=generator)
        return [Batch(self.path.sample(x, noise, t), condition)]

    def loss(self, batch: Batch) -> Tensor:
        """The path's loss, a scalar."""
        return self.path.loss(lambda noisy, t: self.net(noisy, t, batch.condition), batch.sample)


def train_net(
    path: Path, mixture: Mixture, select: Selector, *, steps: int, early: int, batch_size: int, seed: int
) -> dict[int, Net]:
    """Train a network with the project's one loop: its EMA weights after `early` and after all steps."""
    conditions = mixture.one_hot(torch.zeros(1, dtype=torch.long)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy weights", seed))  # torch's initialisers draw from the global stream alone
        net = Net(conditions)
    options: dict[str, Any] = dict(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, steps=steps)
    kept: dict[int, Net] = {}

    def keep(state: TrainState) -> None:
        kept[state.step] = Net(conditions)
        kept[state.step].load_state_dict(state.ema_state())

    train(
        TrainState(net, **options, ema_power=0.75, ema_max=0.99),
        ToyObjective(net, path, mixture, select, batch_size, seed),
        Cadence(steps, log_every=steps, eval_every=steps, checkpoint_every=early),
        precision="fp32",
        record=lambda row: None,
        evaluate=lambda state: {},
        save=keep,
    )
    return {early: kept[early], steps: kept[steps]}


@torch.no_grad()
def generate(net: nn.Module, path: Path, noise: Tensor, condition: Tensor, steps: int, limit: float) -> Tensor:
    """Go from start noises (N, 2) to data with the path's default solver, under conditions (N, C).

    Returns:
        The paths (steps + 1, N, 2), noise first, samples last, within the limit.
    """
    plan, points = Solver(path.solvers[0], steps).plan(path), []

    def calls(i: int, x: Tensor) -> Tensor:
        points.append(x)
        return net(x, torch.full((len(x),), plan[i].t), condition)

    samples = solve(calls, path, plan, noise[None], limit=limit)
    return torch.stack([*points, samples])
