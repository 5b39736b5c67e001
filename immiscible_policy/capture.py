"""CUDA graphs: work on tensors that stay where they are, recorded once and replayed with a single launch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import TypeVar

import torch

Result = TypeVar("Result")

WARMUP = 3
"""Runs before a capture, in which libraries compile, choose algorithms and allocate."""
ALONE = Lock()
"""Held for what threads of a process must not do at once: capturing (PyTorch allows one capture at a time), compiling,
and drawing from torch's global random stream, as initialisers do and as compiling saves and restores."""


def capture(
    work: Callable[[], Result],
    device: torch.device,
    rehearsal: AbstractContextManager[object] | None = None,
) -> tuple[Callable[[], None], Result]:
    """Record work as a CUDA graph, after warming up on the same stream as PyTorch's documentation asks.

    The work reads and writes tensors that stay where they are on the GPU; it must not draw, nor wait for the device.
    `rehearsal` undoes what the warm-up changes.

    Returns:
        What replays the work, and what it returned, in tensors that every replay overwrites.
    """
    stream = torch.cuda.Stream(device)
    with ALONE, torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), rehearsal or nullcontext():
            for _ in range(WARMUP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # freeing an older graph in the middle would end the capture
        try:
            # Other threads may go on preparing batches.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            gc.enable()
    return graph.replay, result


def use_device(device: str) -> None:
    """Make a GPU the current one of this thread: streams and graphs belong to that. Does nothing for the CPU."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
