"""Small run directories with known scores."""

from collections.abc import Callable
from pathlib import Path

import yaml

from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import RunDirectory

Score = Callable[[int, int, int], float]


def write_run(
    directory: Path, score: Score, seeds=(0, 1, 2), steps=(500, 1000, 1500), starts=range(100, 106), **settings
) -> RunDirectory:
    """Write a PushT run whose max coverage is score(seed, step, start)."""
    run = RunDirectory(directory)
    run.begin(yaml.safe_dump({"task": {"name": "pusht"}, "noise": {"name": "knn"}} | settings), {})
    for seed in seeds:
        for step in steps:
            run.seed(seed).append_episodes(episode(seed, step, start, score(seed, step, start)) for start in starts)
    return run


def episode(seed: int, step: int, start: int, coverage: float) -> EpisodeRow:
    """An episode whose scores follow from its max coverage."""
    metrics = {
        "coverage": coverage,
        "final_coverage": coverage / 2,
        "reward": min(1.0, coverage / 0.95),
        "success": float(coverage > 0.95),
    }
    return EpisodeRow(step, start, seed, metrics, 300)
