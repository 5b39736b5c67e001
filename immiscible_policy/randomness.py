"""Every random choice is a pure function of named integers: resume and evaluation reproduce by construction."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """Mix a purpose and some numbers into a seed of 63 bits; other purposes and numbers give unrelated seeds."""
    words = [zlib.crc32(purpose.encode()), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(device: torch.device | str, purpose: str, *numbers: int) -> torch.Generator:
    """A torch generator on `device`, seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(purpose, *numbers))
