"""The robot policy's objective: windows of demonstrations, noise through a selector."""

from __future__ import annotations

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Windows
from immiscible_policy.noise import Selector
from immiscible_policy.policy.diffusion import DiffusionPolicy, Noised
from immiscible_policy.randomness import derive_seed, torch_generator


class PolicyObjective:
    """Denoising loss on batches of windows.

    Batch, noise and diffusion steps are pure functions of (seed, step). They are drawn for the whole batch before it
    is cut into micro-batches, so accumulation changes memory, not the result.

    Args:
        policy: What is trained.
        windows: All training windows, on the policy's device; a batch is one gather.
        select: Chooses the noise.
        batch_size: Windows per optimizer step.
        accumulate: Micro-batches that a batch is cut into.
        seed: Training seed.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        windows: Windows,
        select: Selector,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
    ) -> None:
        self.policy = policy
        self.windows = windows
        self.select = select
        self.accumulate = accumulate
        self.seed = seed
        self.order = ShuffledOrder(len(windows), batch_size, seed, windows.action.device)

    def batches(self, step: int) -> list[Noised]:
        """The noised micro-batches of a training step."""
        batch = self.windows[self.order.rows(step)]
        generator = torch_generator(batch.action.device, "noise", self.seed, step)
        noised = self.policy.noised(batch.obs, batch.action, self.select, step=step, generator=generator)
        return noised.split(self.accumulate) if self.accumulate > 1 else [noised]

    def loss(self, batch: Noised) -> Tensor:
        """Mean denoising loss of a micro-batch."""
        return self.policy.loss(batch)


class ShuffledOrder:
    """Epoch after epoch through shuffled rows, as a function of the step; batches may span two epochs.

    Args:
        size: Number of rows.
        batch_size: Rows per step.
        seed: Training seed.
        device: Where the rows are wanted; a whole epoch is moved there at once.
    """

    def __init__(self, size: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.size, self.batch_size, self.seed, self.device = size, batch_size, seed, device
        self._shuffled: tuple[int, Tensor] = (-1, torch.empty(0))

    def rows(self, step: int) -> Tensor:
        """Row numbers (batch_size,) of a step, int64."""
        first = step * self.batch_size
        last = first + self.batch_size
        epochs = range(first // self.size, (last - 1) // self.size + 1)
        parts = []
        for epoch in epochs:
            start = epoch * self.size
            parts.append(self._epoch(epoch)[max(first - start, 0) : min(last - start, self.size)])
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._shuffled = (epoch, torch.randperm(self.size, generator=generator).to(self.device))
        return self._shuffled[1]
