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
    batch. Where nothing is distributed, it is the plain selector.
    """

    select: Selector  # the selector for the whole batch

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
        condition_shape = None if condition is None else (tuple(condition.shape), condition.dtype)
        _agree(problem, [tuple(x.shape), x.dtype, condition_shape, mask is not None])
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
        own = torch.empty_like(x, memory_format=torch.contiguous_format)
        parts = None if noise is None else [part.contiguous() for part in noise.chunk(dist.get_world_size())]
        dist.scatter(own, parts, 0)
        return own


def _agree(problem: str, shapes: object) -> None:
    """Raise on every process if one has a problem, or if their shapes differ."""
    words: list[tuple[str, object]] = [("", None)] * dist.get_world_size()
    dist.all_gather_object(words, (problem, shapes))
    for rank, (text, theirs) in enumerate(words):
        if text:
            raise ValueError(f"process {rank}: {text}")
        if theirs != words[0][1]:
            raise ValueError(f"process {rank} has {theirs}, process 0 has {words[0][1]}; all need the same shapes")


def _gather(rows: Tensor) -> Tensor | None:
    """All processes' rows (P * B, ...) on the first process, None on the others."""
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(rows, parts, dst=0)
    return None if parts is None else torch.cat(parts)
