"""The image policy: a diffusion policy whose condition is what an encoder makes of pictures, trained with it.

Shape legend: B samples, O observation steps, K cameras, H and W height and width, Do other numbers per observation, T
horizon, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.network.encoder import ImageEncoder, to_pixels
from immiscible_policy.noise import Selector
from immiscible_policy.policy.diffusion import DiffusionPolicy, Noised
from immiscible_policy.policy.normalizer import Normalizer

GLANCE = 8
"""Side of the thumbnails by which selection tells pictures apart."""


class Pictured(NamedTuple):
    """Observations with pictures.

    Attributes:
        agent: What needs no encoding, in its own units (B, O, Do).
        images: Frames (B, O, K, H, W, 3) uint8.
    """

    agent: Tensor
    images: Tensor


class NoisedPictured(NamedTuple):
    """A training batch after noising; every field has B rows.

    Attributes:
        noisy: x_t, noisy normalised actions (B, T, A).
        noise: The noise to predict (B, T, A).
        t: Diffusion steps (B,).
        agent: Normalised numbers of the observations (B, O, Do).
        images: Frames (B, O, K, H, W, 3) uint8; a quarter of what float32 takes.
    """

    noisy: Tensor
    noise: Tensor
    t: Tensor
    agent: Tensor
    images: Tensor


class ImagePolicy(DiffusionPolicy):
    """A diffusion policy that sees pictures: its observations are `Pictured`, its encoder learns with its denoiser.

    Args:
        encoder: Makes the denoiser's condition of normalised numbers (B, O, Do) and frames.
        denoiser: As of `DiffusionPolicy`, its condition as long as the encoder's features.
        observation: Normaliser of an observation's numbers.
        action: As of `DiffusionPolicy`.
        horizon: As of `DiffusionPolicy`.
        diffusion_steps: As of `DiffusionPolicy`.
        data_scale: As of `DiffusionPolicy`.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        denoiser: nn.Module,
        observation: Normalizer,
        action: Normalizer,
        *,
        horizon: int,
        diffusion_steps: int = 100,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__(
            denoiser, observation, action, horizon=horizon, diffusion_steps=diffusion_steps, data_scale=data_scale
        )
        self.encoder = encoder

    def noised(  # type: ignore[override]
        self,
        observation: Pictured,
        action: Tensor,
        select: Selector,
        *,
        step: int,
        generator: torch.Generator,
        mask: Tensor | None = None,
        levels: range | None = None,
    ) -> NoisedPictured:
        """As `DiffusionPolicy.noised`; the frames are passed on as bytes, to be encoded with gradients in `loss`."""
        batch = super().noised(
            observation,  # type: ignore[arg-type]
            action,
            select,
            step=step,
            generator=generator,
            mask=mask,
            levels=levels,
        )
        agent = self.observation.normalize(observation.agent)
        return NoisedPictured(batch.noisy, batch.noise, batch.t, agent, observation.images)

    def loss(self, batch: NoisedPictured) -> Tensor:  # type: ignore[override]
        """Mean squared error of the predicted noise, a scalar, through denoiser and encoder."""
        features = self.encoder(batch.agent, batch.images)
        return super().loss(Noised(batch.noisy, batch.noise, batch.t, features))

    def features(self, observation: Pictured) -> Tensor:  # type: ignore[override]
        """The denoiser's condition (B, O * (64 K + Do)): pictures encoded once for a whole denoising."""
        return self.encoder(self.observation.normalize(observation.agent), observation.images)

    def condition(self, observation: Pictured) -> Tensor:  # type: ignore[override]
        """What selection compares: normalised positions, and the newest frames as 8 x 8 thumbnails of -1..1.

        The encoder's features would tie the noise to the parameters, so that no batch could be prepared ahead.

        Returns:
            (B, O * Do + K * 192).
        """
        newest = to_pixels(observation.images[:, -1]).flatten(0, 1)  # (B K, 3, H, W)
        thumbnails = nn.functional.adaptive_avg_pool2d(newest, GLANCE).reshape(len(observation.agent), -1)
        return torch.cat([self.observation.normalize(observation.agent).flatten(1), thumbnails], dim=1)
