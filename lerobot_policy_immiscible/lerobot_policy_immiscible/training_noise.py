"""What stands between a LeRobot policy's loss and the noise that it draws.

Nothing of LeRobot's losses is repeated here. A policy computes its own loss, in which its first draw of noise in the
shape of the actions returns the chosen noise (`immiscible_policy.plugins.draws`). Chosen noise comes from a generator
of its own, a function of the seed and the training step: timesteps, dropout and crops are those of plain training.

Legend: B samples in the batch, T steps of the chunk, A numbers per action, D >= A with padding, C observed numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from immiscible_policy.noise import ForResidual, Selector, make_selector
from immiscible_policy.noise.audit.statistics import pair_distance
from immiscible_policy.noise.prediction import Prediction
from immiscible_policy.plugins.draws import chosen_draw
from immiscible_policy.randomness import torch_generator

POLICIES = {
    "immiscible": "diffusion",
    "immiscible_multi_task_dit": "multi_task_dit",
    "immiscible_smolvla": "smolvla",
    "immiscible_pi0": "pi0",
    "immiscible_pi05": "pi05",
}
"""LeRobot's own type of each policy type here."""
SAMPLES = 4096
"""Samples that a prediction or potentials are fitted to: the first of the training."""


@dataclass
class TrainingNoise:
    """Chooses the noise of a training's batches, one after the other.

    Attributes:
        select: What chooses.
        step: Training steps so far.
    """

    select: Selector
    step: int = 0

    def loss(
        self, forward: Callable[..., tuple[Tensor, dict | None]], batch: dict[str, Any], *args: Any, **options: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """A policy's own loss of a batch, with chosen noise.

        Padding never enters the distance by which noise is chosen: neither copies of an episode's last action beyond
        its end, whether or not the loss counts them, nor dimensions that the robot does not have.

        Args:
            forward: The policy's `forward`.
            batch: What it takes: observations, `action` (B, T, A) and perhaps `action_is_pad` (B, T), normalised.
            *args: What `forward` takes besides.
            **options: The same.

        Returns:
            What `forward` returns, its log with what `distances` says.

        Raises:
            RuntimeError: If the policy draws no noise in the shape of the actions, or draws it in a compiled graph.
        """
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        action = batch[ACTION]
        generator = torch_generator(action.device, "training noise", torch.initial_seed(), rank, self.step)

        def choose(clean: Tensor) -> Tensor:
            real, condition = real_numbers(batch, clean), observed(batch)
            with torch.autocast(clean.device.type, enabled=False):
                return self.select(clean, condition=condition, mask=real, step=self.step, generator=generator)

        with chosen_draw(action, choose) as noise:
            loss, log = forward(batch, *args, **options)
        self.step += 1
        pairs = distances(noise.padded, noise.plain, noise.chosen, real_numbers(batch, noise.padded))
        return loss, {**(log or {}), **pairs}


class ChosenNoise:
    """Mixed into a LeRobot policy, before its class: trains with the noise that its configuration chooses.

    Args:
        config: The configuration, with `NoiseOptions`.
        *args: What LeRobot hands to every policy besides.
        **kwargs: The same.
    """

    config: Any
    training: bool

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]  # a policy's
        self.training_noise = TrainingNoise(config.selector(), config.trained_steps)

    def forward(self, batch: dict[str, Any], *args: Any, **options: Any) -> tuple[Tensor, dict[str, Any] | None]:
        """LeRobot's loss of a normalised batch: with chosen noise in training, else the plain one, which compares."""
        plain = super().forward  # type: ignore[misc]
        if self.config.noise == "vanilla" or not self.training:
            return plain(batch, *args, **options)
        loss, log = self.training_noise.loss(plain, batch, *args, **options)
        self.config.trained_steps = self.training_noise.step
        return loss, log


def use_noise(policy: Any, select: Selector | str, **options: Any) -> None:
    """Let a policy of LeRobot train with chosen noise from now on; it stays the policy that it is.

    `use_noise(policy, "knn", k=4)` is all that a script needs. In evaluation mode the loss is the plain one.

    Args:
        policy: A policy of LeRobot's, of one of its types in `POLICIES`.
        select: A selector, or the name of one.
        **options: The options of the one that is named.

    Raises:
        ValueError: If the policy is of another type, the selector is unknown, or an option is not its own.
    """
    if policy.name not in POLICIES.values():
        known = ", ".join(POLICIES.values())
        raise ValueError(f"a policy of type {policy.name}: noise is chosen for {known}")
    noise = TrainingNoise(make_selector(select, **options) if isinstance(select, str) else select)
    policy.forward = _Loss(policy, noise)


@dataclass(frozen=True)
class _Loss:
    """A policy's `forward` with chosen noise; its class has the plain one. A copy of the policy gets its own."""

    policy: Any
    noise: TrainingNoise

    def __call__(self, batch: dict[str, Any], *args: Any, **options: Any) -> tuple[Tensor, dict[str, Any] | None]:
        plain = type(self.policy).forward.__get__(self.policy)
        if not self.policy.training:
            return plain(batch, *args, **options)
        return self.noise.loss(plain, batch, *args, **options)


@dataclass
class FittedOnTheWay:
    """A selector that is fitted to the first samples that it sees, since LeRobot shows a policy one batch at a time.

    Attributes:
        select: What chooses.
        mean: Fits the prediction to whose residuals noise is chosen; None: to the samples themselves. Until the
            prediction is there the noise is plain.
        potentials: Whether to fit what the selector itself learns from samples.
        samples: Samples to fit to.
    """

    select: Selector
    mean: Callable[[Tensor, Tensor], Prediction] | None = None
    potentials: bool = False
    samples: int = SAMPLES
    seen: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    fitted: Selector | None = None

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose noise for x (B, ...), with what was fitted to the samples before them."""
        if self.mean and condition is None:
            raise ValueError("select_for=residual: the policy observes no numbers from which to predict; leave it out")
        first = make_selector("vanilla") if self.mean else self.select
        noise = (self.fitted or first)(x, condition=condition, mask=mask, step=step, generator=generator)
        if self.fitted is None:
            self.seen.append((x if mask is None else torch.where(mask, x, 0.0), condition))
            if sum(len(rows) for rows, _ in self.seen) >= self.samples:
                self.fitted = self._fit()
                self.seen.clear()
        return noise

    def _fit(self) -> Selector:
        x = torch.cat([rows for rows, _ in self.seen])
        if self.mean is None:
            return self.select.fitted(x)  # type: ignore[attr-defined]  # optional in the protocol
        condition = torch.cat([rows for _, rows in self.seen if rows is not None])
        residual = ForResidual(self.select, self.mean(condition, x))
        if not self.potentials:
            return residual
        select = self.select.fitted(residual.residual(x, condition))  # type: ignore[attr-defined]
        return ForResidual(select, residual.prediction)


def real_numbers(batch: dict[str, Any], x: Tensor) -> Tensor:
    """Which numbers of padded actions x (B, T, D) are real (B, T, D): of the episode, and of the robot."""
    real = (torch.arange(x.shape[-1], device=x.device) < batch[ACTION].shape[-1]).expand(x.shape)
    beyond = batch.get(f"{ACTION}_is_pad")  # (B, T)
    return real if beyond is None else real & ~beyond.to(x.device).unsqueeze(-1)


def observed(batch: dict[str, Any]) -> Tensor | None:
    """The numbers that the policy observes (B, C), without pictures and words, or None if there are none."""
    numbers = [batch[key].flatten(1) for key in (OBS_STATE, OBS_ENV_STATE) if key in batch]
    return torch.cat(numbers, dim=1) if numbers else None


def distances(x: Tensor, plain: Tensor, chosen: Tensor, real: Tensor) -> dict[str, float]:
    """How far actions lie from their noise, as the noise audit measures it; on the CPU, which always has float64.

    Args:
        x: Actions (B, T, D).
        plain: Plain noise for them.
        chosen: The chosen noise.
        real: Numbers that count (B, T, D).

    Returns:
        `pair_distance`, the mean Euclidean distance, and `pair_distance_change_percent` against plain noise, below 0
        where chosen noise is nearer.
    """
    x, real = x.cpu(), real.cpu()
    before, after = (float(pair_distance(x, noise.cpu(), real).mean()) for noise in (plain, chosen))
    return {"pair_distance": after, "pair_distance_change_percent": 100 * (after / before - 1)}
