"""Paths between data and noise for the toy: training pairs on them, a small network, and one sampler for both.

On either path a point at time t is x_t = alpha(t) x + sigma(t) eps, data at t = 0 and noise at t = 1. Whatever the
network predicts tells both x and eps, and a step to time s goes to alpha(s) x + sigma(s) eps: DDIM (Song et al., 2021)
on diffusion's path, and exactly Euler's step x_t + (t - s) v on that of flow matching.

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
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.training.loop import Schedule, train
from immiscible_policy.training.state import TrainState

FREQUENCIES = 4
LATEST = 0.995
"""Diffusion's sampling starts a little before t = 1, where the noise no longer tells the data."""


@dataclass(frozen=True)
class Path:
    """How data become noise.

    Attributes:
        curved: True for diffusion, x_t = cos(pi t / 2) x + sin(pi t / 2) eps, whose network predicts eps; False for
            flow matching, x_t = (1 - t) x + t eps, whose network predicts v = x - eps (Lipman et al., 2023).
        limit: Largest coordinate of the data; diffusion clips its estimates of x to it, as diffusion policies do.
    """

    curved: bool
    limit: float

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""
        return torch.cos(math.pi / 2 * t) if self.curved else 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise."""
        return torch.sin(math.pi / 2 * t) if self.curved else t

    def point(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (N, 2) of data and noise (N, 2) at times (N, 1)."""
        return self.alpha(t) * x + self.sigma(t) * noise

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the network learns to predict (N, 2)."""
        return noise if self.curved else x - noise

    def solve(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise (N, 2 each) that a prediction at x_t implies."""
        if not self.curved:
            return x_t + t * prediction, x_t - (1 - t) * prediction
        x = ((x_t - self.sigma(t) * prediction) / self.alpha(t)).clamp(-self.limit, self.limit)
        return x, (x_t - self.alpha(t) * x) / self.sigma(t)


class Net(nn.Module):
    """Three hidden layers on position, time and condition.

    Args:
        conditions: Numbers of condition, C.
        width: Units of a hidden layer.
    """

    def __init__(self, conditions: int, width: int = 128) -> None:
        super().__init__()
        sizes = [2 + 2 * FREQUENCIES + conditions, width, width, width]
        hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict (N, 2) from points (N, 2), times (N, 1) and conditions (N, C)."""
        angles = math.pi / 2 * t * 2.0 ** torch.arange(FREQUENCIES)
        return self.layers(torch.cat([x_t, angles.cos(), angles.sin(), condition], dim=1))


class Pairs(NamedTuple):
    """A training batch; every field has N rows.

    Attributes:
        x_t: Points on the paths (N, 2).
        target: What to predict there (N, 2).
        t: Times (N, 1).
        condition: Conditions (N, C).
    """

    x_t: Tensor
    target: Tensor
    t: Tensor
    condition: Tensor


@dataclass(frozen=True)
class PathObjective:
    """Mean squared error of the prediction on batches of a mixture; each batch is a function of (seed, step).

    Attributes:
        net: What is trained.
        path: Between data and noise.
        mixture: The data.
        select: Chooses the noise.
        batch_size: Points per step.
        seed: Training seed.
    """

    net: Net
    path: Path
    mixture: Mixture
    select: Selector
    batch_size: int
    seed: int

    def batches(self, step: int) -> list[Pairs]:
        """The batch of a training step."""
        generator = torch_generator("cpu", "toy", self.seed, step)
        x, modes = self.mixture.sample(self.batch_size, generator)
        condition = self.mixture.one_hot(modes)
        t = torch.rand(len(x), 1, generator=generator)
        noise = self.select(x, condition=condition if condition.numel() else None, step=step, generator=generator)
        return [Pairs(self.path.point(x, noise, t), self.path.target(x, noise), t, condition)]

    def loss(self, batch: Any) -> Tensor:
        """Mean squared error, a scalar."""
        return nn.functional.mse_loss(self.net(batch.x_t, batch.t, batch.condition), batch.target)


def train_net(
    path: Path, mixture: Mixture, select: Selector, *, steps: int, early: int, batch_size: int, seed: int
) -> dict[int, Net]:
    """Train a network with the project's one loop.

    Args:
        path: Between data and noise.
        mixture: The data.
        select: Chooses the noise.
        steps: Length of the training.
        early: An earlier step at which to look as well.
        batch_size: Points per step.
        seed: Training seed.

    Returns:
        The network with its EMA weights after `early` and after all steps.
    """
    conditions = mixture.one_hot(torch.zeros(1, dtype=torch.long)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy weights", seed))  # torch's initialisers draw from the global stream alone
        net = Net(conditions)
    options: dict[str, Any] = dict(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, steps=steps)
    state = TrainState(net, **options, ema_power=0.75, ema_max=0.99)
    kept: dict[int, Net] = {}

    def keep(state: TrainState) -> None:
        kept[state.step] = Net(conditions)
        kept[state.step].load_state_dict(state.ema_state())

    objective = PathObjective(net, path, mixture, select, batch_size, seed)
    schedule = Schedule(steps, log_every=steps, eval_every=steps, checkpoint_every=early)
    train(state, objective, schedule, precision="fp32", record=_ignore, evaluate=lambda state: {}, save=keep)
    return {early: kept[early], steps: kept[steps]}


@torch.no_grad()
def generate(net: Net, path: Path, noise: Tensor, condition: Tensor, steps: int) -> Tensor:
    """Follow the network from noise to data in equal steps of time.

    Args:
        net: Predicts the path's target.
        path: Between data and noise.
        noise: Starts (N, 2).
        condition: Conditions (N, C).
        steps: Evaluations of the network.

    Returns:
        The paths (steps + 1, N, 2), noise first, samples last.
    """
    times = torch.linspace(LATEST if path.curved else 1.0, 0.0, steps + 1)
    points = [noise]
    for t, s in zip(times, times[1:], strict=False):
        prediction = net(points[-1], t.expand(len(noise), 1), condition)
        x, eps = path.solve(points[-1], prediction, t)
        points.append(path.alpha(s) * x + path.sigma(s) * eps)
    return torch.stack(points)


def _ignore(row: dict[str, Any]) -> None:
    """Metrics of the toy are measured on its samples."""
