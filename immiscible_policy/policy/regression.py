"""Controls without diffusion: the same network, data and loop, but one chunk per observation and nothing random in it.

With o the condition, a the clean chunk, z ~ N(0, I), and a network f(input, t, o) that predicts the clean chunk:

    regression    learns   |f(0, 0, o) - a|^2                            acts with   f(0, 0, o)
    mip           learns   |f(0, 0, o) - a|^2 + |f(I, t*, o) - a|^2      acts with   f(t* f(0, 0, o), t*, o)

where I = t* a + (1 - t*) z and t* = 0.9. Both are the same loop over the times at which the network is asked, (0,) and
(0, t*): at each it meets t a + (1 - t) z in training (nothing at t = 0) and t times its own last prediction in acting.

`mip` is the minimal iterative policy of "Much Ado About Noising" (Pan et al., 2025, arXiv 2512.01809). The authors'
released code differs: it meets a + (1 - t*) z, weighs the errors by 1 / t*^2 and 1 / (1 - t*)^2, and does not scale
the first prediction before the second pass. Choices of ours: errors are means over numbers instead of sums, every
prediction is clipped to the range of the data, as the diffusion sampler clips its own, and the network reads t as the
step t * diffusion_steps of a chain that it does not have (0 and 90 of 100).

Shape legend: B samples, O observation steps, Do numbers per observation, T horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.noise import Selector
from immiscible_policy.policy.chunk import ChunkPolicy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.sampling import Sampler

TIMES = {"regression": (0.0,), "mip": (0.0, 0.9)}
"""Times at which each control asks its network, by method."""


class Supervised(NamedTuple):
    """A training batch; every field has B rows.

    Attributes:
        target: Clean normalised action chunks to predict (B, T, A).
        noise: What is mixed into them on the way in (B, T, A); zeros where nothing is.
        condition: Normalised, flattened observations (B, O * Do).
    """

    target: Tensor
    noise: Tensor
    condition: Tensor


class RegressionPolicy(ChunkPolicy):
    """Predicts action chunks from the last observations by least squares; trained and called like `DiffusionPolicy`.

    Args:
        denoiser: Predicts clean chunks from (input (B, T, A), t (B,), condition (B, O * Do)).
        observation: Normaliser of one observation.
        action: Normaliser of one action.
        horizon: T, steps in a chunk.
        times: When the network is asked, from 0 on: a value of `TIMES`.
        diffusion_steps: What the network reads for t = 1.
        data_scale: Factor on the normalised actions, undone after sampling; predictions are clipped to +-data_scale.

    Raises:
        ValueError: If data_scale is not positive, or the times do not begin at 0 or leave [0, 1).
    """

    def __init__(
        self,
        denoiser: nn.Module,
        observation: Normalizer,
        action: Normalizer,
        *,
        horizon: int,
        times: Sequence[float] = TIMES["regression"],
        diffusion_steps: int = 100,
        data_scale: float = 1.0,
    ) -> None:
        if not times or times[0] != 0 or not all(0 <= t < 1 for t in times):
            raise ValueError(f"times={tuple(times)}: needs 0 first, then numbers below 1")
        super().__init__(
            denoiser, observation, action, horizon=horizon, diffusion_steps=diffusion_steps, data_scale=data_scale
        )
        self.times = tuple(times)

    def noised(
        self,
        observation: Tensor,
        action: Tensor,
        select: Selector,
        *,
        step: int,
        generator: torch.Generator,
        mask: Tensor | None = None,
        levels: range | None = None,
    ) -> Supervised:
        """Everything that a training step needs and that may be random; without a time above 0, nothing is drawn.

        Args:
            observation: Observations (B, O, Do), in their own units.
            action: Action chunks (B, T, A), in their own units.
            select: Draws the noise: the plain selector, as `check_method` sees to.
            step: Training step.
            generator: Source of the noise.
            mask: Passed on to the selector.
            levels: Not used: there are no diffusion steps.
        """
        condition = self.condition(observation)
        x = self.clean(action)
        if not any(self.times):
            return Supervised(x, torch.zeros_like(x), condition)
        return Supervised(x, select(x, condition=condition, mask=mask, step=step, generator=generator), condition)

    def loss(self, batch: Supervised) -> Tensor:
        """Mean squared error of the predicted chunk, summed over the times, a scalar (module docstring)."""
        total = torch.zeros((), device=batch.target.device)
        for t in self.times:
            mixed = t * batch.target + (1 - t) * batch.noise if t else torch.zeros_like(batch.target)
            total = total + nn.functional.mse_loss(self._predict(mixed, t, batch.condition), batch.target)
        return total

    @torch.no_grad()
    def sample(self, observation: Tensor, sampler: Sampler, generators: Sequence[torch.Generator]) -> Tensor:
        """Predict one action chunk per observation: a function of the observation alone.

        Args:
            observation: Observations (B, O, Do), in their own units.
            sampler: Not used: there is nothing to denoise.
            generators: Not used: nothing is drawn.

        Returns:
            Action chunks (B, T, A), in their own units.
        """
        condition = self.condition(observation)
        x = torch.zeros(len(condition), self.horizon, self.action.scale.shape[0], device=condition.device)
        for t in self.times:
            x = self._predict(t * x, t, condition).clamp(-self.data_scale, self.data_scale)
        return self.action.unnormalize(x / self.data_scale)

    def _predict(self, x: Tensor, t: float, condition: Tensor) -> Tensor:
        """The clean chunk (B, T, A) that the network predicts from x (B, T, A) at time t."""
        step = torch.full((len(x),), round(t * self.diffusion_steps), device=x.device)
        return self.denoiser(x, step, condition).float()


def check_method(method: str, *, noise: str, obs: str) -> None:
    """Refuse what a control cannot do.

    Args:
        method: `diffusion`, or one of `TIMES`.
        noise: Name of the selector.
        obs: What the policy observes.

    Raises:
        ValueError: If the method is unknown, or is a control with a selector other than `vanilla`, or with images.
    """
    known = ("diffusion", *TIMES)
    if method not in known:
        raise ValueError(f"method={method}: known methods are {', '.join(known)}")
    if method in TIMES and noise != "vanilla":
        raise ValueError(
            f"noise={noise}: method={method} does not diffuse, so no noise can be chosen; use noise=vanilla"
        )
    if method in TIMES and obs == "image":
        raise ValueError(f"obs=image: method={method} sees no images; use obs=keypoints, obs=state or method=diffusion")
