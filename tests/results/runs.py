"""Small run directories with known scores."""

from collections.abc import Callable
from pathlib import Path

from immiscible_policy.store.rows import EpisodeRow, append_rows

Score = Callable[[int, int, int], float]


def write_run(directory: Path, score: Score, seeds=(0, 1, 2), steps=(500, 1000, 1500), starts=range(100, 106)) -> Path:
    """Write a run whose max coverage is score(seed, step, start)."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("noise: knn\n")
    for seed in seeds:
        for step in steps:
            (directory / f"seed_{seed}").mkdir(exist_ok=True)
            append_rows(
                directory / f"seed_{seed}" / "episodes.csv",
                [episode(seed, step, start, score(seed, step, start)) for start in starts],
            )
    return directory


def episode(seed: int, step: int, start: int, coverage: float) -> EpisodeRow:
    """An episode whose scores follow from its max coverage."""
    return EpisodeRow(step, start, seed, coverage > 0.95, coverage, coverage / 2, min(1.0, coverage / 0.95), 300)
