"""How long a training takes: measured on passes through its network, said in the plan."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.cli import parse_range
from immiscible_policy.training.options import RunConfig
from immiscible_policy.training.processes import process_group

ENOUGH = 0.1
"""Seconds of a pass that are measured well enough."""
GROWTH = 16
"""From one measured pass to the next, so many times as many samples."""
TRAINED = 3.0
"""A pass with gradients takes so many times as long as one without."""
DAY = 86_400.0
LONG = 30 * DAY
"""Whoever plans a longer training is asked whether it is meant."""
UNITS = {"years": 365.25 * DAY, "days": DAY, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}


class Rehearsal(NamedTuple):
    """A network as it will be trained, with weights that mean nothing.

    Attributes:
        run: A forward pass of so many samples; what it returns has gradients.
        evaluated: Samples that the network sees in an evaluation, without gradients.
    """

    parameters: list[Tensor]
    run: Callable[[int], Tensor]
    evaluated: int


def blank(network: nn.Module, device: str) -> nn.Module:
    """A network that was built on the device `meta`, moved to another one with all its numbers 0."""
    network.to_empty(device=device)
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network


def planned_time(config: RunConfig, rehearsal: Rehearsal) -> str:
    """A line on the time from the first step to the last on this machine.

    Seeds at once share the cores, or the GPU. What is measured is the network alone, without environments and
    selection; a GPU that replays a captured graph needs less.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        rows = -(-config.batch_size // (config.accumulate * process_group().size))
        sample = sample_seconds(rehearsal, rows, config.device, config.precision)
    finally:
        torch.set_num_threads(threads)
    step, evaluation = config.accumulate * rows * sample, rehearsal.evaluated * sample / TRAINED
    of_seed = config.steps * step - (-config.steps // (config.eval_every or config.steps)) * evaluation
    seeds = len(parse_range("seed", config.seed))
    at_once = min(config.parallel or 1, seeds)
    cores = 1 if config.device.startswith("cuda") else (os.cpu_count() or 1) / (config.threads or 1)
    total = -(-seeds // at_once) * max(1.0, at_once / cores) * of_seed
    line = f"time:   about {spoken(total)} ({spoken(step)} a step, {spoken(evaluation)} an evaluation)"
    return line if total < LONG else f"{line}; if that is not meant, make steps=, batch_size= or the network smaller"


def sample_seconds(rehearsal: Rehearsal, most: int, device: str, precision: str) -> float:
    """Seconds of a sample in a forward and backward pass of at most so many, the more the longer they take."""

    def seconds() -> float:
        started = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            output = rehearsal.run(rows)
        output.float().sum().backward()
        if output.is_cuda:
            torch.cuda.synchronize(output.device)
        return time.perf_counter() - started

    rows = 1
    while True:
        best = min(seconds() for _ in range(2))  # the first of a shape prepares it
        if best >= ENOUGH or rows == most:
            return best / rows
        rows = min(GROWTH * rows, most)


def spoken(seconds: float) -> str:
    """A duration with its unit, such as `3.4 h`."""
    unit = next((unit for unit, length in UNITS.items() if seconds >= length), "ms")
    amount = seconds / UNITS[unit]
    return f"{amount:,.1f} {unit}" if amount < 10 else f"{amount:,.0f} {unit}"
