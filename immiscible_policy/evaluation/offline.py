"""Scores on held-out demonstrations, where there is no environment to act in, or beside it.

A policy is asked where it would plan in a held-out episode: at its first step, and then every `action_steps` steps, as
far as the episode's windows go.
There it sees what was recorded, and samples M chunks X_1 ... X_M; y is what the demonstrator did. Both are cut to the
steps that would be executed, padding left out, and divided by half the range of each dimension over the whole store,
whatever the policy is normalised by. With |.| the root mean square over the numbers of a chunk::

    energy score   E|X - y| - E|X - X'| / 2     =  mean_i |X_i - y|  -  sum_{i != j} |X_i - X_j| / (2 M (M - 1))
    action error   mean absolute difference of X and y

The energy score (Gneiting and Raftery, JASA 2007, section 4.3, with the sign turned) is a strictly proper scoring rule:
its expectation is least where X is distributed as y is. The second sum leaves the pairs (i, i) out, so its expectation
does not depend on M. The action error is least for a policy that always gives the median; it says nothing of how many
ways the demonstrators knew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.evaluation.rollout import ActingPolicy
from immiscible_policy.noise import fit_linear_prediction
from immiscible_policy.policy.normalizer import half_range
from immiscible_policy.randomness import torch_generator
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.tasks import Observed

SAMPLES = 8
"""Chunks that are sampled at each place, M."""
BATCH = 256
MOST_FITTED = 20_000
"""So many windows, evenly spaced, are enough to fit the linear probe."""
PREFIX = "validation/"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out episodes."""

    windows: Windows  # all that they give
    layout: Layout
    episodes: list[int]  # their numbers in the store, by the number that `windows.episode` has
    scale: Tensor  # (A,) half the range of each dimension of the action over the whole store

    @cached_property
    def nth(self) -> Tensor:
        """The place of each window in its episode (N,)."""
        _, counts = torch.unique_consecutive(self.windows.episode, return_counts=True)
        return torch.cat([torch.arange(int(count)) for count in counts])

    @cached_property
    def places(self) -> Tensor:
        """The windows in which a policy plans (P,)."""
        return torch.nonzero(self.nth % self.layout.action_steps == 0).flatten()

    def seen(self, rows: Tensor) -> Observed:
        """What a policy sees in some of the windows."""
        footage = self.windows.footage
        frames = {} if footage is None else {name: of[footage.step[rows]] for name, of in footage.frames.items()}
        return Observed(self.windows.obs[rows].numpy(), {name: images.numpy() for name, images in frames.items()})


def energy_score(samples: Tensor, recorded: Tensor, counted: Tensor) -> Tensor:
    """The energy score (N,) of M >= 2 samples (M, N, n, A) about what was recorded (N, n, A).

    `counted` (N, n) says which steps count, at least one of each row.
    """
    weights = counted.unsqueeze(-1) / (counted.sum(dim=1) * samples.shape[-1])[:, None, None]  # (N, n, 1)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square() * weights).sum(dim=(-2, -1)).sqrt()

    spread = torch.stack([distance(samples, other).sum(dim=0) for other in samples]).sum(dim=0)
    count = len(samples)
    return distance(samples, recorded).mean(dim=0) - spread / (2 * count * (count - 1))


def sampled(policy: ActingPolicy, held_out: HeldOut) -> Tensor:
    """Chunks that a policy would execute at the places where it plans (M, P, n, A), in their own units.

    The noise of each is a function of its episode, its place there and its number, so policies meet the same.
    """
    windows, count = held_out.windows, len(held_out.places)
    samplings = [(row, number) for number in range(SAMPLES) for row in held_out.places.tolist()]
    chunks = []
    for first in range(0, len(samplings), BATCH):
        batch = samplings[first : first + BATCH]
        generators = [
            torch_generator(
                "cpu", "held out", held_out.episodes[int(windows.episode[row])], int(held_out.nth[row]), number
            )
            for row, number in batch
        ]
        chunks.append(torch.from_numpy(policy.act(held_out.seen(torch.tensor([row for row, _ in batch])), generators)))
    return torch.cat(chunks).reshape(SAMPLES, count, *chunks[0].shape[1:])


def score(
    policy: ActingPolicy, held_out: HeldOut, *, seed: int, checkpoint: int
) -> tuple[list[EpisodeRow], dict[str, float]]:
    """Score a policy on held-out episodes.

    Returns:
        A row for each episode, whose start is its number in the store, with `energy_score` and `action_error`; and
        these figures over all places, as `validation/...`: both, and `action_error/D` of each dimension D of the action
        in the data's own units.
    """
    chunks, windows, executed = sampled(policy, held_out), held_out.windows[held_out.places], held_out.layout.executed
    recorded, real = windows.action[:, executed].double(), windows.real[:, executed]
    errors = (chunks - recorded).abs().mean(dim=0)  # (P, n, A)
    scaled = errors / held_out.scale
    energy = energy_score(chunks / held_out.scale, recorded / held_out.scale, real)
    rows = []
    for number, episode in enumerate(held_out.episodes):
        own = windows.episode == number
        if own.any():
            metrics = {"energy_score": float(energy[own].mean()), "action_error": float(scaled[own][real[own]].mean())}
            rows.append(EpisodeRow(checkpoint, episode, seed, metrics, int(real[own].sum())))
    by_dimension = errors[real].mean(dim=0)
    figures: dict[str, Any] = {"energy_score": energy.mean(), "action_error": scaled[real].mean()}
    figures |= {f"action_error/{dimension}": error for dimension, error in enumerate(by_dimension)}
    return rows, {PREFIX + key: float(value) for key, value in figures.items()}


def linear_r2(training: Windows, held_out: Windows) -> float | None:
    """Share of the variance of held-out chunks that a linear prediction from the numbers observed explains, R^2.

    What it leaves open is what sampling, and so the choice of noise, is about. The ridge regression is fitted on the
    training windows; every number counts relative to its range there. It is negative for a prediction worse than the
    mean of these windows, and None where nothing varies. Pictures do not enter.
    """
    fitted = training[torch.arange(0, len(training), -(-len(training) // MOST_FITTED))]
    observed, acted = (half_range(*values.flatten(0, 1).aminmax(dim=0)) for values in (fitted.obs, fitted.action))
    chunks = fitted.action / acted
    prediction = fit_linear_prediction(fitted.obs / observed, chunks)
    target = (held_out.action / acted).flatten(1)
    left = (target - prediction(held_out.obs / observed)).square().sum()
    varies = (target - chunks.flatten(1).mean(dim=0)).square().sum()
    return float(1 - left / varies) if varies > 0 else None
