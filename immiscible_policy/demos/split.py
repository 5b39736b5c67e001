"""Which episodes train and which validate, exactly as in Diffusion Policy's published runs.

The protocol (Chi et al., RSS 2023; `seed` is 42 in every task of theirs, whatever the training seed):

1. validation: round(2% of the episodes), at least 1, drawn without replacement by
   `default_rng(seed).choice`;
2. of the others, in increasing order, at most `limit` are drawn without replacement by a
   second, fresh `default_rng(seed).choice`; the rest is not used.

On the 206 human episodes: 4 validate, 90 of the other 202 train.
"""

from __future__ import annotations

import numpy as np


def split_episodes(
    n_episodes: int, validation: float, limit: int | None = None, seed: int = 42
) -> tuple[np.ndarray, np.ndarray]:
    """Split episodes into training and validation episode numbers, each increasing, disjoint.

    `validation` is the share that validates, in [0, 1); 0 gives none, anything above at least one episode. `limit` is
    the largest number of training episodes. The seed is that of the draw, not of the training.

    Raises ValueError if a value is out of range, or no episode is left to train on.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a share of the episodes in [0, 1). Got validation={validation}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 training episode. Got limit={limit}")
    needed = 2 if validation else 1
    if n_episodes < needed:
        raise ValueError(f"too few episodes. Got n_episodes={n_episodes}, validation={validation}")
    n_validation = min(max(1, round(n_episodes * validation)), n_episodes - 1) if validation else 0
    held_out = np.random.default_rng(seed).choice(n_episodes, size=n_validation, replace=False)
    train = np.setdiff1d(np.arange(n_episodes), held_out)
    if limit is not None and limit < len(train):
        train = np.sort(train[np.random.default_rng(seed).choice(len(train), size=limit, replace=False)])
    return train, np.sort(held_out)
