"""Batches: trees of tensors, such as (nested) named tuples, in which every tensor has a row per sample.

The loop does not know what a batch holds. It counts, cuts and copies rows.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from immiscible_policy.randomness import derive_seed

Batch = Any
"""A tensor, or a tuple, named tuple, list or dictionary of batches; None stands for a part that is absent."""


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def size(batch: Batch) -> int:
    """Rows of a batch."""
    return len(tensors(batch)[0])


def clone(batch: Batch) -> Batch:
    """The same batch in memory of its own."""
    return tree_map_only(Tensor, Tensor.clone, batch)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into at most so many parts of (nearly) equal size, as `Tensor.chunk` does."""

    def part(number: int) -> Batch:
        return tree_map_only(Tensor, lambda rows: rows.chunk(parts)[number], batch)

    return [part(number) for number in range(len(tensors(batch)[0].chunk(parts)))]


class Together:
    """Makes several successive batches at once and hands them out one by one.

    So noise can be chosen over all of them::

        batches = 4      | batch 0 | batch 1 | batch 2 | batch 3 | batch 4 ...
        made at once     |---------------- 0 --------------------|---- 1 -----

    The last that were made are kept. Threads may ask.
    """

    def __init__(self, make: Callable[[int], Batch], batches: int) -> None:
        self._make, self._batches = make, batches
        self._kept: tuple[int, list[Batch]] = (-1, [])
        self._lock = Lock()

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        number, part = divmod(step, self._batches)
        if self._batches == 1:
            return self._make(number)
        with self._lock:
            if self._kept[0] != number:
                self._kept = number, cut(self._make(number), self._batches)
            return self._kept[1][part]


class ShuffledOrder:
    """Epoch after epoch through shuffled rows, as a function of the step; batches may span two epochs.

    A whole epoch is moved to the device at once. With `halves` a batch is drawn from the first half of the rows and
    followed by their partners in the second half; sizes are even then.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, device: torch.device | str = "cpu", *, halves: bool = False
    ) -> None:
        self.size, self.batch_size, self.seed, self.device, self.halves = size, batch_size, seed, device, halves
        self._shuffled: tuple[int, Tensor] = (-1, torch.empty(0))

    def rows(self, step: int) -> Tensor:
        """Row numbers (batch_size,) of a step, int64."""
        size, batch = (number // (1 + self.halves) for number in (self.size, self.batch_size))
        first = step * batch
        last = first + batch
        parts = []
        for epoch in range(first // size, (last - 1) // size + 1):
            start = epoch * size
            parts.append(self._epoch(epoch, size)[max(first - start, 0) : min(last - start, size)])
        return torch.cat([*parts, *(part + size for part in parts if self.halves)])

    def _epoch(self, epoch: int, size: int) -> Tensor:
        shuffled = self._shuffled  # read and replaced whole: batches are prepared in several threads
        if shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._shuffled = shuffled = (epoch, torch.randperm(size, generator=generator).to(self.device))
        return shuffled[1]
