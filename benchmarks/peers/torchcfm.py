"""torchcfm's exact optimal-transport sampler: pairs for a batch (runs in `.venv-peers`)."""

from __future__ import annotations

import time
from typing import Any

import torch
from torchcfm.optimal_transport import OTPlanSampler

from benchmarks.peers.serve import serve, versions


class TorchCfm:
    """The sampler of minibatch optimal-transport flow matching."""

    def build(self, *, threads: int) -> dict[str, Any]:
        """Make the sampler with its exact solver."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.sampler = OTPlanSampler(method="exact", num_threads=threads)
        return {"versions": versions(("torchcfm", "pot", "torch"))}

    def data(self, *, x: list[list[float]]) -> None:
        """Take samples (N, D)."""
        self.x = torch.tensor(x)

    def pair(self, *, rows: list[int]) -> dict[str, float]:
        """Pair rows of the samples with fresh noise.

        Returns:
            Seconds, noise included; and the share of the rows that occur in no pair, as the sampler draws from the
            plan with replacement.
        """
        x = self.x[rows]
        start = time.perf_counter()
        noise, paired = self.sampler.sample_plan(torch.randn_like(x), x)
        seconds = time.perf_counter() - start
        left_out = 1 - len(torch.unique(paired, dim=0)) / len(torch.unique(x, dim=0))
        return {"seconds": seconds, "left_out": left_out}


if __name__ == "__main__":
    serve(TorchCfm())
