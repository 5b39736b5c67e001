"""Min-max normalisation of each dimension to [-1, 1], as Diffusion Policy does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST_RANGE = 1e-4
"""Numbers that vary less than this count as constant: they are centred, not stretched."""
FLOAT32_STEPS = 2.0**-14
"""The share of a number that is a thousand steps of float32."""


def half_range(low: Tensor, high: Tensor) -> Tensor:
    """Half the range of each dimension between its bounds (D,); 1 where it is constant, and centred only."""
    return torch.where(high - low >= SMALLEST_RANGE, (high - low) / 2, 1.0)


def action_bounds(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of actions (D,), so that a constant one is acted out as it is.

    One that varies less than `SMALLEST_RANGE` gets bounds that far from its middle, or so far that float32 tells them
    apart: a sampler's ±1 then stays near it, where bounds 1 apart would let the robot move.
    """
    low, high = low.double(), high.double()
    middle = (low + high) / 2
    half = torch.clamp(middle.abs() * FLOAT32_STEPS, min=SMALLEST_RANGE)
    constant = high - low < SMALLEST_RANGE
    return torch.where(constant, middle - half, low), torch.where(constant, middle + half, high)


class Normalizer(nn.Module):
    """An affine map per dimension, between `low` and `high` (D,); its buffers travel with the weights.

    Raises ValueError if a bound is not finite or low exceeds high.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        low, high = low.double(), high.double()
        if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
            raise ValueError(f"cannot normalise between {low.tolist()} and {high.tolist()}: need finite low <= high")
        scale = 1 / half_range(low, high)
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", (-scale * (low + high) / 2).float())

    @classmethod
    def fit(cls, values: Tensor) -> Normalizer:
        """Take the range of values (..., D) over all but the last dimension."""
        rows = values.reshape(-1, values.shape[-1])
        return cls(rows.amin(dim=0), rows.amax(dim=0))

    def normalize(self, values: Tensor) -> Tensor:
        """Map values (..., D) in their own units to about [-1, 1]."""
        return values * self.scale + self.offset

    def unnormalize(self, values: Tensor) -> Tensor:
        """Map values (..., D) in [-1, 1] back to their own units."""
        return (values - self.offset) / self.scale
