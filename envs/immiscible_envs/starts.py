"""Where episodes start: the published mapping from seeds, and the project's frozen list of it.

The published evaluation protocol (Chi et al., Diffusion Policy, RSS 2023) draws five numbers per seed and
hands them to the simulation *position first*. The block then turns about its centre of gravity, which carries
its frame's origin away: the numbers are arguments, not the state that follows. Libraries have changed this
mapping between releases, so `published_starts.json` holds both sides of it, for ever:

    arguments   what the mapping draws: agent x, y, block x, y in px, angle in rad
    state       what `Simulation.reset(arguments, "position_first")` makes of them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immiscible_envs.geometry import Array

STARTS = files("immiscible_envs").joinpath("published_starts.json")
STARTS_SHA256 = "59492e1ca1d802e292dff12409b93bbe0b13ac3842acd0b21495df24cd44a6c9"
AGENT_RANGE = (50, 450)  # px, upper end excluded
BLOCK_RANGE = (100, 400)  # px, upper end excluded


def legacy_starts(seeds: Iterable[int]) -> Array:
    """The published starts (N, 5) float64 of some seeds, arguments of `Simulation.reset(arguments, "position_first")`.

    Seeds 100000..100049 are the test starts, 0..5 the training starts, both frozen; others are drawn by the mapping.

    Raises:
        ValueError: If a seed is not a whole number from 0 to 2**32 - 1.
    """
    frozen = _frozen()
    rows = [frozen[seed]["arguments"] if seed in frozen else draw(seed) for seed in map(_checked, seeds)]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def published_starts() -> tuple[NDArray[np.int64], Array]:
    """The frozen list: seeds (56,) int64 of 50 test and 6 training starts, and the states (56, 5) that follow.

    A state is agent x, y, block x, y in px, angle in [0, 2 pi] rad. To begin an episode there, bit for bit, reset with
    the option `legacy_seed`. A ValueError if the list is not the one that this version of the package was made with.
    """
    frozen = _frozen()
    return np.array(list(frozen), dtype=np.int64), np.array([row["state"] for row in frozen.values()])


def draw(seed: int) -> list[float]:
    """Draw the five numbers of one seed, in the published order: agent x, y, block x, y, angle."""
    random = np.random.RandomState(seed)
    agent = [random.randint(*AGENT_RANGE), random.randint(*AGENT_RANGE)]
    block = [random.randint(*BLOCK_RANGE), random.randint(*BLOCK_RANGE)]
    return [*map(float, agent + block), random.randn() * 2 * np.pi - np.pi]


@cache
def _frozen() -> dict[int, dict[str, Any]]:
    content = STARTS.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != STARTS_SHA256:
        raise ValueError(f"{STARTS} is not the frozen list (sha256 {digest[:12]}...); reinstall the package")
    return {row["seed"]: row for row in json.loads(content)["starts"]}


def _checked(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"legacy seed {seed!r} is not a whole number from 0 to 4294967295")
    return int(seed)
