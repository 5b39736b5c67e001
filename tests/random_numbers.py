"""Random number generators of tests."""

import torch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(seed * 10_000 + i) for i in range(count)]
