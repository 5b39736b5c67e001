"""How much memory a training needs, and whether it is there: said in the plan, refused before anything is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.cli import CommandError, parse_range
from immiscible_policy.training.engine import GPU_WORKERS
from immiscible_policy.training.options import CLUSTERS, RunConfig
from immiscible_policy.training.processes import process_group

COPIES = 6
"""Of each parameter: weight, gradient, AdamW's two moments, EMA, and the weights kept aside in an evaluation."""
GB = 1e9


class Footprint(NamedTuple):
    """What one seed of a training keeps in memory.

    Attributes:
        parameters: Numbers that train.
        activations: What one sample of a batch keeps for the backward pass [bytes], in float32.
        data: Everything that it trains on [bytes].
        selection: What choosing the noise of a batch takes [bytes]; on a GPU several are chosen at once.
    """

    parameters: int
    activations: int
    data: int
    selection: int = 0

    def estimate(self, config: RunConfig, seeds: int) -> int:
        """Bytes of so many seeds that are trained at once.

        Of several processes that train one seed together, those of the GPU of one of them.
        """
        on_gpu = config.device.startswith("cuda")
        rows = -(-config.batch_size // (config.accumulate * (process_group().size if on_gpu else 1)))
        activations = self.activations * rows // (2 if config.precision == "bf16" else 1)
        selection = self.selection * (GPU_WORKERS if on_gpu else 1)
        return seeds * (4 * COPIES * self.parameters + activations + selection + self.data)


def seeds_at_once(config: RunConfig, footprint: Footprint) -> int:
    """How many seeds train at once: `parallel=`, or as many as there are cores and memory for.

    Three seeds on two cores end sooner side by side than two and then one, so a core may have two. A launcher may have
    more jobs than one run has seeds, those of a grid.
    """
    seeds = len(parse_range("seed", config.seed))
    if config.parallel is not None:
        return min(config.parallel, seeds) if config.launcher == "local" else config.parallel
    most = max(1, 2 * (os.cpu_count() or 1) // (config.threads or 1)) if config.device == "cpu" else 2
    if config.launcher == "local":
        most = min(most, seeds)
    free = free_memory(config.device)
    while most > 1 and free is not None and footprint.estimate(config, most) > free:
        most -= 1
    return most


def require_memory(config: RunConfig, footprint: Footprint) -> str:
    """A line on the memory that a training takes and what is free; what cannot fit is a CommandError.

    Machines of a cluster are not asked.
    """
    seeds = seeds_at_once(config, footprint)
    needed = footprint.estimate(config, seeds)
    parts = f"{footprint.parameters:,} parameters, batch_size={config.batch_size}, {seeds} seeds at once"
    if footprint.selection > GB:
        parts += f", {footprint.selection / GB:,.1f} GB for each to choose noise"
    line = f"memory: about {needed / GB:,.1f} GB ({parts})"
    free = None if config.launcher in CLUSTERS else free_memory(config.device)
    if free is None:
        return line
    if needed > free:
        cure = "make batch_size=, parallel= or the network smaller"
        what = f"about {needed / GB:,.1f} GB of memory are needed ({parts})"
        raise CommandError(f"{what}, {free / GB:.1f} GB are free; {cure}")
    return f"{line}, {free / GB:.1f} GB are free"


def free_memory(device: str) -> int | None:
    """Bytes that a device, or this machine, has to spare; None where nothing says so."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (available := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), flags=re.M)):
        return 1024 * int(available[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out; on the device `meta` it takes none.

    What several operations keep of the same tensor counts once.
    """
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)
