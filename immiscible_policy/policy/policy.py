"""A policy: a path, a network, an observer, and the units on either side.

    observation --observer--> features of the network, condition of the selection
    action --normalise, scale--> x --path(noise, t)--> x_t --network--> output, compared with the path's target
    noise --solver(path, network, features)--> x --unscale, unnormalise--> action

Shape legend: B samples, O observation steps, T horizon, A action dimensions, C numbers of the selection's condition,
G features of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.noise import Selector
from immiscible_policy.noise.inputs import draw
from immiscible_policy.path import PathSample, ProbabilityPath
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.observer import Observer
from immiscible_policy.solver import Plan, Replay, Solver, draws, noise_rows, solve


class NoisedBatch(NamedTuple):
    """Everything of a training step that is random, drawn; every tensor has B rows."""

    path: PathSample  # of (B, T, A)
    observed: tuple[Tensor, ...]  # what the observer prepared, to be encoded with gradients in `Policy.loss`


class Policy(nn.Module):
    """Makes action chunks from the last observations.

    Args:
        path: How clean actions and noise meet, and what the network learns.
        network: Called with (x_t (B, T, A), what the path tells it of the time (B,), features (B, G)).
        observer: Makes the network's features of observations, and the condition that selection compares.
        action: Normaliser of one action.
        horizon: T, steps in a chunk.
        data_scale: Factor on the normalised actions before selection and the path, undone after sampling; the range
            that samples are clipped to is scaled with it.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(
        self,
        path: ProbabilityPath,
        network: nn.Module,
        observer: Observer,
        action: Normalizer,
        *,
        horizon: int,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__()
        require_scale(data_scale)
        self.path = path
        self.network = network
        self.observer = observer
        self.action = action
        self.horizon = horizon
        self.data_scale = data_scale
        self._replay = Replay()

    def noised(
        self,
        observation: Any,
        action: Tensor,
        select: Selector,
        *,
        step: int,
        generator: torch.Generator,
        mask: Tensor | None = None,
        levels: range | None = None,
        teach: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> NoisedBatch:
        """Choose noise and times for a batch: the seam at which immiscible noise enters training.

        Args:
            observation: What the observer takes, in its own units.
            action: Action chunks (B, T, A), in their own units.
            select: Chooses the noise for the clean normalised actions.
            step: Training step, for selectors with a schedule.
            generator: Source of the noise and of the times.
            mask: Boolean, broadcasts to the actions: which of them enter the selection's distance.
            levels: Times at which the chosen noise is used, plain noise at the others; None: at all.
            teach: Makes clean scaled actions (B, T, A) of observations and noise, which take the place of those given.
        """
        x = self.clean(action)
        observed = self.observer.prepare(observation)
        condition = self.observer.condition(*observed)
        noise = select(x, condition=condition, mask=mask, step=step, generator=generator)
        t = self.path.times(len(x), generator, step=step).to(x.device)
        if levels is not None:
            chosen = ((t >= levels.start) & (t < levels.stop)).reshape(-1, 1, 1)
            noise = torch.where(chosen, noise, draw(x, generator))
        if teach is not None:
            x = teach(observation, noise)
        return NoisedBatch(self.path.sample(x, noise, t), observed)

    def loss(self, batch: NoisedBatch) -> Tensor:
        """Mean loss of what `noised` returned, a scalar."""
        features = self.observer.encode(*batch.observed)
        return self.path.loss(lambda noisy, t: self.network(noisy, t, features), batch.path)

    @torch.no_grad()
    def predict(self, observation: Any, solver: Solver, generators: Sequence[torch.Generator]) -> Tensor:
        """Make one action chunk per observation, starting from plain Gaussian noise.

        Args:
            observation: What the observer takes, B rows, in its own units.
            solver: How to go from noise to actions.
            generators: One source of noise per row, so that a row does not depend on its neighbours.

        Returns:
            Action chunks (B, T, A), in their own units.

        Raises:
            ValueError: If the rows and the generators differ in number, or the solver does not go with the path.
        """
        features, plan = self.encode(observation), solver.plan(self.path)
        if len(generators) != len(features):
            raise ValueError(f"{len(features)} observations need as many generators; got {len(generators)}")
        noise = noise_rows(generators, draws(plan), (self.horizon, len(self.action.scale))).to(features.device)
        return self.action.unnormalize(self.solve(features, plan, noise) / self.data_scale)

    def encode(self, observation: Any) -> Tensor:
        """The network's features (B, G) of observations, computed once for all its calls."""
        return self.observer.encode(*self.observer.prepare(observation))

    @torch.no_grad()
    def solve(self, features: Tensor, plan: Plan, noise: Tensor) -> Tensor:
        """Clean scaled actions (B, T, A) from given noise; on a CUDA device one captured graph.

        The features (B, G) are those of `encode`, the plan a solver's for this path, the noise (N, B, T, A) as much as
        the plan `draws`.
        """
        function = partial(self._solve, plan)
        t = torch.tensor([step.t for step in plan], device=features.device)
        if t.device.type != "cuda":
            return function(t, features, noise)
        weights = tuple(p.data_ptr() for p in self.network.parameters())  # a recording reads them where they were
        return self._replay((plan, weights), function, t, features, noise)

    def condition(self, observation: Any) -> Tensor:
        """What selection compares of observations (B, C)."""
        return self.observer.condition(*self.observer.prepare(observation))

    def clean(self, action: Tensor) -> Tensor:
        """What selection and path see of action chunks (B, T, A): normalised and scaled."""
        return self.data_scale * self.action.normalize(action)

    def _solve(self, plan: Plan, t: Tensor, features: Tensor, noise: Tensor) -> Tensor:
        """Clean actions (B, T, A) of network calls at times t (S,): a function of tensors and weights alone."""
        if isinstance(self.network, ConditionalUnet1d):
            calls: Callable[[int, Tensor], Tensor] = self.network.predictor(t, features)
        else:
            calls = lambda i, x: self.network(x, t[i].expand(len(x)), features)  # noqa: E731
        return solve(calls, self.path, plan, noise, limit=self.data_scale)


def require_scale(data_scale: float) -> None:
    """Refuse a data scale that is not a positive number; raises ValueError if it is not."""
    if not 0 < data_scale < float("inf"):
        raise ValueError(f"data_scale={data_scale}: needs a number above 0")
