"""Dual potentials of the assignment problem, fitted once on the data: they make every later solve fast.

Shape legend: N training samples, B samples of a batch, D numbers per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.noise.costs import DistanceName, check_distance, distances
from immiscible_policy.noise.inputs import check, is_whole
from immiscible_policy.noise.mlp import mlp, mlp_weights

HIDDEN = 32


@dataclass(frozen=True, eq=False)
class Potentials:
    """A function of the sample, phi(x): a small network with two hidden layers.

    Any function would do: what is subtracted from all of a sample's costs changes no assignment. A good one is
    close to the optimal dual variables, and the solver then finds most pairs at once.
    """

    scale: float  # what samples are divided by
    weights: tuple[Tensor, ...]  # weights and biases, layer after layer

    def __call__(self, x: Tensor) -> Tensor:
        """Potentials (B,) of samples x (B, D).

        Raises:
            ValueError: If D is not what they were fitted to.
        """
        if x.shape[1] != self.weights[0].shape[1]:
            dims = self.weights[0].shape[1]
            raise ValueError(f"potentials were fitted to samples of {dims} numbers; x has {x.shape[1]}")
        return mlp(self.weights, x / self.scale).squeeze(1)


def fit_potentials(
    windows: Tensor,
    *,
    cost: DistanceName = "euclidean",
    steps: int = 1000,
    batch_size: int = 256,
    lr: float = 5e-3,
    generator: torch.Generator | None = None,
) -> Potentials:
    """Fit potentials to the samples that will be paired with standard normal noise.

    Gradient ascent on the dual of the transport problem between batches x_i and noises e_j (Kantorovich duality, with
    the noise's potential replaced by its best response):

        mean_i phi(x_i) + mean_j min_i (cost(x_i, e_j) - phi(x_i)).

    Args:
        windows: Clean samples as the selector will see them (N, ...), for example normalised action chunks.
        cost: The assignment's distance.
        steps: Gradient steps; about a millisecond each for action chunks.
        batch_size: Samples and noises per step.
        lr: Peak learning rate of Adam (one cycle).
        generator: Source of randomness, on the CPU; by default one of its own, so that fits repeat.

    Raises:
        ValueError: If windows are not finite floating-point samples, or an option is out of range.
    """
    check(windows, None, None)
    check_distance(cost)
    if not torch.isfinite(windows).all():
        raise ValueError("windows contains NaN or infinity; clean the data before fitting")
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 2)):
        if not is_whole(value) or value < least:
            raise ValueError(f"{name}={value}: needs a whole number, {least} or more")
    generator = generator or torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        x = windows.detach().flatten(1).float().clone()
        scale = float(x.square().mean().sqrt().clamp_min(1e-6))
        phi = Potentials(scale, mlp_weights((x.shape[1], HIDDEN, HIDDEN, 1), generator, x.device))
        optimizer = torch.optim.Adam(phi.weights, lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(len(x), (batch_size,), generator=generator)
            noise = torch.randn(batch_size, x.shape[1], generator=generator).to(x.device)
            batch = x[rows.to(x.device)]
            potential = phi(batch)
            response = (distances(batch, noise, None, cost) - potential[:, None]).amin(dim=0)
            optimizer.zero_grad()
            (-potential.mean() - response.mean()).backward()
            optimizer.step()
            schedule.step()
    return Potentials(scale, tuple(weight.detach() for weight in phi.weights))
