"""What every selector is: a function from clean samples to noise, with options and no memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Selector(Protocol):
    """A drop-in for `torch.randn_like(x)` that has no state between calls.

    Optional: `fitted(x)` returns the selector with what it learns once from all training samples x (N, ...);
    `schedule` is a `Schedule` by which it selects, and `step` is needed then; `divergence(batch_size)` is the most that
    E KL(q(e|x) || N(0, I)) can be, in nats, where q(e|x) is the law of the noise of a sample x; `memory(batch_size,
    numbers)` is about how many bytes choosing takes for samples of so many numbers.
    """

    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose noise of the shape, dtype and device of x.

        Args:
            x: Clean samples (B, ...), any floating-point dtype; distances are measured in at least float32.
            condition: What the network knows of the samples besides their noisy form, one row per sample (B, ...).
            mask: Boolean, broadcasts to x; only numbers where it is True enter the distance.
            step: Training step.
            generator: Source of randomness.

        Raises:
            ValueError: For unusable x, condition or mask, or one that is missing.
        """
        ...
