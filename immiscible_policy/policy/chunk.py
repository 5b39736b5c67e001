"""What every policy shares: normalised observations in, normalised chunks of actions out.

Shape legend: B samples, O observation steps, Do numbers per observation, T horizon, A action dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_policy.noise import Selector
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.sampling import Sampler


class ChunkPolicy(nn.Module, ABC):
    """A network that makes action chunks from the last observations, with the units on either side of it.

    Args:
        denoiser: Called with (actions (B, T, A), step (B,), condition (B, O * Do)).
        observation: Normaliser of one observation.
        action: Normaliser of one action.
        horizon: T, steps in a chunk.
        diffusion_steps: Length of the noising chain.
        data_scale: Factor on the normalised actions before selection and diffusion, undone after sampling; the range
            that samples are clipped to is scaled with it.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        observation: Normalizer,
        action: Normalizer,
        *,
        horizon: int,
        diffusion_steps: int = 100,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not data_scale > 0:
            raise ValueError(f"data_scale={data_scale}: needs a number above 0")
        self.denoiser = denoiser
        self.observation = observation
        self.action = action
        self.horizon = horizon
        self.diffusion_steps = diffusion_steps
        self.data_scale = data_scale

    @abstractmethod
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
    ) -> Any:
        """Everything of a training step that is random: a named tuple of tensors with a row per sample.

        Args:
            observation: Observations (B, O, Do), in their own units.
            action: Action chunks (B, T, A), in their own units.
            select: Chooses the noise for the clean normalised actions.
            step: Training step, for selectors with a schedule.
            generator: Source of all randomness.
            mask: Boolean, broadcasts to the actions: which of them enter the selection's distance.
            levels: Diffusion steps at which the chosen noise is used, plain noise at the others; None: at all.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Mean loss of what `noised` returned, a scalar."""

    @abstractmethod
    def sample(self, observation: Any, sampler: Sampler, generators: Sequence[torch.Generator]) -> Tensor:
        """Make one action chunk per observation.

        Args:
            observation: Observations (B, O, Do), in their own units.
            sampler: Scheme and number of denoising steps.
            generators: One source of noise per row, so that a row does not depend on its neighbours.

        Returns:
            Action chunks (B, T, A), in their own units.
        """

    def clean(self, action: Tensor) -> Tensor:
        """What is noised, or predicted (B, T, A): normalised, scaled action chunks."""
        return self.data_scale * self.action.normalize(action)

    def condition(self, observation: Tensor) -> Tensor:
        """What selection compares: observations (B, O, Do) normalised and flattened to (B, O * Do)."""
        return self.observation.normalize(observation).flatten(1)
