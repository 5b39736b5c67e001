"""What a policy makes of its observations: the network's features, and the condition that selection compares.

Shape legend: B samples, O observation steps, K cameras, H and W height and width, Do numbers per observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from immiscible_policy.network.encoder import ImageEncoder, to_channels_first
from immiscible_policy.policy.normalizer import Normalizer

THUMBNAIL = 8
"""Side of the thumbnails by which selection tells pictures apart."""


class Pictured(NamedTuple):
    """Observations with pictures: numbers (B, O, Do) in their own units, and frames (B, O, K, H, W, 3) uint8."""

    numbers: Tensor
    images: Tensor


class Observer(Protocol):
    """Makes of observations what network and selection need; every observer is a `torch.nn.Module` besides."""

    normalizer: Normalizer

    @property
    def encode(self) -> Callable[..., Tensor]:
        """Makes the network's features (B, G), with gradients, of the tensors that `prepare` returned."""
        ...

    @property
    def condition(self) -> Callable[..., Tensor]:
        """Makes what selection compares (B, C) of what `prepare` returned: no parameters enter, so it runs ahead."""
        ...

    def prepare(self, observation: Any) -> tuple[Tensor, ...]:
        """What a training batch keeps of the observations, tensors with B rows: no parameters enter."""
        ...


class NumberObserver(nn.Module):
    """Observations (B, O, Do) of numbers, normalised and flattened."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer

    def prepare(self, observation: Tensor) -> tuple[Tensor]:
        """Normalised numbers (B, O * Do)."""
        return (self.normalizer.normalize(observation).flatten(1),)

    def condition(self, numbers: Tensor) -> Tensor:
        """The numbers as they are: condition and features alike."""
        return numbers

    encode = condition


class ImageObserver(nn.Module):
    """Observations with pictures (`Pictured`), encoded by a network that learns with the policy."""

    def __init__(self, normalizer: Normalizer, encoder: ImageEncoder) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.encoder = encoder

    def condition(self, numbers: Tensor, images: Tensor) -> Tensor:
        """Normalised numbers, and the newest frames as 8 x 8 thumbnails of -1..1 (B, O * Do + K * 192).

        The encoder's features would tie the noise to the parameters, so that no batch could be prepared ahead.
        """
        newest = to_channels_first(images[:, -1]).flatten(0, 1)  # (B K, 3, H, W)
        thumbnails = nn.functional.adaptive_avg_pool2d(newest, THUMBNAIL).reshape(len(numbers), -1)
        return torch.cat([numbers.flatten(1), thumbnails], dim=1)

    def prepare(self, observation: Pictured) -> tuple[Tensor, Tensor]:
        """Normalised numbers (B, O, Do), and the frames as bytes, a quarter of what float32 takes."""
        return self.normalizer.normalize(observation.numbers), observation.images

    def encode(self, numbers: Tensor, images: Tensor) -> Tensor:
        """Features (B, O * (64 K + Do))."""
        return self.encoder(numbers, images)
