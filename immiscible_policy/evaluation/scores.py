"""A run's scores: its episodes arranged by checkpoint and start, and what is read off them.

* A checkpoint's score is the mean of a metric over starts.
* `last10` is the mean score of the last ten evaluated checkpoints, or of all where there are fewer.
* `max` is the score of the best checkpoint: the largest, or the smallest where the metric is better when lower. It is
  chosen *because* it is good, so it is too high for the run.
* `max_fresh` is that checkpoint's score on held-out starts, where `fresh.csv` holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from immiscible_policy.evaluation.statistics import Array
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.rows import EpisodeRow, complete
from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.tasks import Metric, SetMetric, primary

LAST = 10
KINDS = ("last10", "max", "max_fresh")


def kind_title(kind: str, checkpoints: int) -> str:
    """What people read for a kind of score: `last10` of three checkpoints is `last 3`."""
    return f"last {checkpoints}" if kind == "last10" else kind


@dataclass(frozen=True)
class Scores:
    """Scores of one training seed at every completely evaluated checkpoint.

    Attributes:
        steps: Training steps of the checkpoints, ascending (C,).
        starts: Seeds of the starts, ascending (N,).
        values: Per metric, an array (C, N).
    """

    steps: list[int]
    starts: list[int]
    values: dict[str, Array]

    def at(self, steps: Sequence[int], starts: Sequence[int]) -> Scores:
        """The scores at some of the checkpoints and starts."""
        rows = np.ix_([self.steps.index(step) for step in steps], [self.starts.index(start) for start in starts])
        return Scores(list(steps), list(starts), {name: table[rows] for name, table in self.values.items()})

    @property
    def checkpoints(self) -> list[dict[str, Array]]:
        """The metrics (N,) of each checkpoint."""
        return [{name: table[row] for name, table in self.values.items()} for row in range(len(self.steps))]

    def last(self, metric: str) -> Array:
        """The last checkpoint, per start (N,)."""
        return self.values[metric][-1]

    def last10(self, metric: str) -> Array:
        """Mean over the last ten checkpoints, per start (N,)."""
        return self.values[metric][-LAST:].mean(0)

    def best(self, metric: Metric | SetMetric) -> tuple[int, Array]:
        """Step of the checkpoint of the best mean (the earliest of equals), and its scores (N,)."""
        values = self.values[metric.name]
        index = int(np.argmax(metric.sign * values.mean(1)))
        return self.steps[index], values[index]


ScoresBySeed = Mapping[int, Scores]
"""Scores by training seed, all over the same starts."""


def scores(rows: Mapping[int, Sequence[EpisodeRow]]) -> dict[int, Scores]:
    """Scores of each training seed from its episodes, all over the same starts.

    What is incomplete is left out (`store.rows.complete`).
    """
    starts, tables = complete(rows)
    arranged = {}
    for seed, table in tables.items():
        names = next(row for by_start in table.values() for row in by_start.values()).metrics
        values = {
            name: np.array([[by_start[start].metrics[name] for start in starts] for by_start in table.values()])
            for name in names
        }
        arranged[seed] = Scores(list(table), starts, values)
    return arranged


def set_scores(table: ScoresBySeed, metrics: Sequence[SetMetric]) -> dict[int, Scores]:
    """What the episodes of each checkpoint are scored by together: (C, 1), all starts being one."""
    return {
        seed: Scores(
            scored.steps,
            scored.starts[:1],
            {metric.name: np.array([[metric.read(episodes)] for episodes in scored.checkpoints]) for metric in metrics},
        )
        for seed, scored in table.items()
    }


def finished(table: ScoresBySeed, unfinished: Collection[int]) -> dict[int, Scores]:
    """Scores of the training seeds that are not among the unfinished ones; all scores where none is left."""
    return {seed: scored for seed, scored in table.items() if seed not in unfinished} or dict(table)


def spoken(unfinished: Mapping[int, int]) -> str:
    """Unfinished training seeds in words, each with its last evaluated step, 0 where there is none."""
    reached = {seed: f"at step {step:,}" if step else "not evaluated" for seed, step in unfinished.items()}
    return ", ".join(f"seed {seed} ({words})" for seed, words in reached.items())


def stacked(table: ScoresBySeed, metric: Metric | SetMetric, kind: str) -> Array:
    """Scores of one kind, `last`, `last10` or `max`: (seeds, starts)."""
    readings: dict[str, Callable[[Scores], Array]] = {
        "last": lambda scored: scored.last(metric.name),
        "last10": lambda scored: scored.last10(metric.name),
        "max": lambda scored: scored.best(metric)[1],
    }
    return np.stack([readings[kind](scored) for scored in table.values()])


def curves(table: ScoresBySeed, metric: str, steps: Sequence[int]) -> Array:
    """Scores at some of the checkpoints: (seeds, steps, starts)."""
    return np.stack([scored.at(steps, scored.starts).values[metric] for scored in table.values()])


def best_steps(table: ScoresBySeed, metric: Metric) -> dict[int, int]:
    """Step of the checkpoint that `max` reads, by training seed."""
    return {seed: scored.best(metric)[0] for seed, scored in table.items()}


def best_checkpoint(seed: SeedDirectory) -> Checkpoint:
    """The checkpoint of a training seed that `max` reads.

    Raises:
        ValueError: If no checkpoint was evaluated completely, or the best one was not kept.
    """
    best = best_steps(scores(seed.run.episodes()), primary(seed.run.task))
    if seed.number not in best:
        raise ValueError(f"{seed.path}: no checkpoint was evaluated completely, so none is the best")
    return seed.checkpoint(best[seed.number])


def best_of_run(run: RunDirectory) -> Checkpoint:
    """The best checkpoint of a run's best training seed, by the mean over starts; ValueError as `best_checkpoint`."""
    table, metric = scores(run.episodes()), primary(run.task)
    if not table:
        raise ValueError(f"{run.path}: no checkpoint was evaluated completely, so none is the best")
    best = max(table, key=lambda seed: metric.sign * float(table[seed].best(metric)[1].mean()))
    return run.seed(best).checkpoint(table[best].best(metric)[0])


def common_steps(*tables: ScoresBySeed) -> list[int]:
    """Checkpoints at which every training seed was evaluated completely, ascending."""
    return sorted(set.intersection(*(set(scored.steps) for table in tables for scored in table.values())))


def fresh_scores(run: RunDirectory, chosen: Mapping[int, int], metric: str) -> dict[int, Array]:
    """Scores of the seeds' chosen checkpoints (steps by seed) on held-out starts.

    Starts that the run was evaluated on in training are left out: the checkpoints were chosen on these.

    Returns:
        By start that all seeds share, the scores of the seeds (S,); empty where some seed has none.
    """
    fresh = run.fresh()
    seen = run.starts_seen if fresh else set()
    tables = [
        {row.start: row.metrics[metric] for row in fresh.get(seed, []) if row.checkpoint == step}
        for seed, step in chosen.items()
    ]
    starts = sorted(set.intersection(*map(set, tables)) - seen)
    return {start: np.array([table[start] for table in tables]) for start in starts}


def set_means(rows: Sequence[EpisodeRow], metrics: Sequence[SetMetric]) -> dict[str, float]:
    """What the episodes of a checkpoint are scored by together."""
    episodes = {name: np.array([row.metrics[name] for row in rows]) for name in rows[0].metrics}
    return {metric.name: metric.read(episodes) for metric in metrics}


def means(rows: Sequence[EpisodeRow]) -> dict[str, float]:
    """Mean of every metric over episodes."""
    return {name: sum(row.metrics[name] for row in rows) / len(rows) for name in rows[0].metrics}


def mean_by_step(rows: Sequence[EpisodeRow], metric: str) -> dict[int, float]:
    """Mean of a metric over the episodes of each checkpoint, complete or not."""
    by_step: dict[int, list[EpisodeRow]] = {}
    for row in rows:
        by_step.setdefault(row.checkpoint, []).append(row)
    return {step: means(of_step)[metric] for step, of_step in by_step.items()}
