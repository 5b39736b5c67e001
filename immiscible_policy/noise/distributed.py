"""Selection over the batch of all processes: gather the samples, select once, scatter the noise.

Shape legend: P processes, B samples on each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_policy.noise.inputs import check
from immiscible_policy.noise.selector import Selector


@dataclass(frozen=True)
class AcrossProcesses:
    """A selector for the global batch, P * B samples in the order of the ranks, of `torch.distributed`'s processes.

    The first process selects for all of them, with its generator: the noise is that of one process with the global
    batch. Where nothing is distributed, it is the plain selector. While a schedule's strength is below 1, the samples
    paired are the first of that batch, so the first processes' before the last ones'.

    Attributes:
        select: The selector for the whole batch.
    """

    select: Selector

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose noise for this process's samples x (B, ...), together with those of all others.

        Shapes are the same on every process; condition and mask are given on every process or on none.

        Raises:
            ValueError: On every process, if one of them has unusable input or the shapes differ.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self.select(x, condition=condition, mask=mask, step=step, generator=generator)
        problem = ""
        try:
            check(x, condition, mask)
        except ValueError as error:
            problem = str(error)
        of_condition = None if condition is None else (tuple(condition.shape), condition.dtype)
        shapes = [tuple(x.shape), x.dtype, of_condition, mask is not None]
        _agree(problem, shapes)
        samples = _gather(x)
        conditions = None if condition is None else _gather(condition)
        masks = None if mask is None else _gather(mask.expand(x.shape))
        noise, problem = None, ""
        if samples is not None:
            try:
                noise = self.select(samples, condition=conditions, mask=masks, step=step, generator=generator)
            except Exception as error:  # whatever it is, the other processes wait for word of it
                problem = str(error) or type(error).__name__
        _agree(problem, None)
        return _scatter(noise, x)


def _agree(problem: str, shapes: object) -> None:
    """Raise on every process if one has a problem, or if their shapes differ."""
    said: list[tuple[str, object]] = [("", None)] * dist.get_world_size()
    dist.all_gather_object(said, (problem, shapes))
    for rank, (text, theirs) in enumerate(said):
        if text:
            raise ValueError(f"process {rank}: {text}")
        if theirs != said[0][1]:
            raise ValueError(f"process {rank} has {theirs}, process 0 has {said[0][1]}; all need the same shapes")


def _gather(rows: Tensor) -> Tensor | None:
    """All processes' rows (P * B, ...) on the first process, None on the others."""
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(rows, parts, dst=0)
    return None if parts is None else torch.cat(parts)


def _scatter(noise: Tensor | None, x: Tensor) -> Tensor:
    """Each process's rows of the first process's noise."""
    own = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.scatter(own, None if noise is None else [part.contiguous() for part in noise.chunk(dist.get_world_size())], 0)
    return own
