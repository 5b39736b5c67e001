"""What every image model offers to training, evaluation and editing, whatever its method.

Shape legend: B images, S pixels along a side; C, H, W one start noise (3, S, S, or a latent's (4, S/8, S/8)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from immiscible_policy.noise import Selector


class ImageSample(NamedTuple):
    """What sampling yields.

    Attributes:
        images: The samples (B, 3, S, S), pixels in [-1, 1].
        predicted: The clean sample that each step predicts (steps, B, C, H, W), the noisiest first; in pixels, or in
            latents where the model works in those.
        t: Times of the steps (steps,), in the units of the model.
    """

    images: Tensor
    predicted: Tensor
    t: Tensor


class ImageModel(Protocol):
    """Learns images and draws them. Every model is a `torch.nn.Module` besides.

    Attributes:
        denoiser: The network that trains.
        noise_shape: Shape (C, H, W) of one start noise.
        data_scale: Factor on the normalised clean sample before selection and noising, undone after sampling.
    """

    denoiser: nn.Module
    noise_shape: tuple[int, int, int]
    data_scale: float

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> Any:
        """Draw everything that is random in a training step, and choose the noise.

        Args:
            pixels: Clean images (B, 3, S, S), float, in [-1, 1].
            select: Chooses the noise for the scaled clean samples.
            step: Training step, for what follows a schedule.
            generator: Source of all randomness.
            prompts: One per image, where the model knows prompts.

        Returns:
            A named tuple of tensors with a row per image.
        """
        ...

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of what `noised` returned, or of some of its rows: a scalar.

        It holds no randomness (dropout apart) and no sizes that depend on values.
        """
        ...

    def sample(
        self,
        noise: Tensor,
        steps: int | None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageSample:
        """Draw images from start noises, without gradients.

        Args:
            noise: Start noises (B, C, H, W), standard Gaussian.
            steps: Calls of the network; None for the model's own best.
            prompts: One per image, where the model knows prompts.
            generator: Source of what sampling draws besides the start noises, where a method does.
        """
        ...


def require_scale(data_scale: float) -> None:
    """Refuse a data scale that is no positive number.

    Raises:
        ValueError: If it is none.
    """
    if not 0 < data_scale < float("inf"):
        raise ValueError(f"data_scale={data_scale}: needs a number above 0")


def require_steps(steps: int, most: float = float("inf")) -> None:
    """Refuse a number of sampling steps below 1 or above `most`.

    Raises:
        ValueError: If it is.
    """
    if not 1 <= steps <= most:
        raise ValueError(f"sampling_steps={steps}: needs 1 or more" + (f", at most {most:g}" if most < 1e9 else ""))
