"""One training over several processes, as `torchrun` and `accelerate launch` start them.

Every process prepares the whole batch, a pure function of (seed, step), noise chosen and all, and trains on its own
rows of it. Selection therefore sees the global batch without a word being exchanged; what is exchanged is one vector
per step, the gradients. The first process alone evaluates and writes; the others wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_policy.training.batches import Batch, cut

PATIENCE = timedelta(hours=6)
"""How long the processes wait for the first one's evaluation."""


class ProcessGroup(NamedTuple):
    """How many processes train together, and which this one is: the first has rank 0, its GPU is its local rank."""

    rank: int
    size: int
    local_rank: int


def process_group() -> ProcessGroup:
    """The processes that this one was started with, from the environment; itself alone where nothing says otherwise."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    return ProcessGroup(*(int(os.environ.get(name, default)) for name, default in names.items()))


def require_shares(batch_size: int, accumulate: int, seeds: Sequence[int]) -> None:
    """Refuse what several processes cannot share out, by a ValueError: several seeds, rows that do not divide."""
    size = process_group().size
    if size == 1:
        return
    if len(seeds) > 1:
        listed = ",".join(map(str, seeds))
        raise ValueError(f"seed={listed}: {size} processes train one seed together; start each alone")
    if batch_size % (size * accumulate):
        needed = f"{size} processes with accumulate={accumulate} need a multiple of {size * accumulate}"
        raise ValueError(f"batch_size={batch_size}: {needed}")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes, if there are any, and leave them at the end."""
    if process_group().size == 1:
        yield
        return
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def any_of_them(says: bool) -> bool:
    """Whether any process says so. All must ask at the same moment; no device is waited for."""
    if process_group().size == 1:
        return says
    votes = torch.tensor(float(says), device="cpu")
    _sum_up(votes)
    return bool(votes)


def own_rows(batches: Sequence[Batch]) -> Sequence[Batch]:
    """This process's rows of each micro-batch."""
    rank, size, _ = process_group()
    return batches if size == 1 else [cut(batch, size)[rank] for batch in batches]


@torch.no_grad()
def average(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Average the gradients of all processes in place, and their losses, a scalar, which is returned."""
    size = process_group().size
    if size == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    vector = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
    _sum_up(vector)
    vector /= size
    for gradient, values in zip(gradients, vector[1:].split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(values.view_as(gradient))
    return vector[0]


def _sum_up(vector: Tensor) -> None:
    """Sum a tensor over all processes, in place; a ValueError if one of them is gone."""
    try:
        dist.all_reduce(vector)
    except RuntimeError:
        raise ValueError("another process of this training is gone; start them all again with resume=true") from None
