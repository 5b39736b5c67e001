"""What a run achieved, with intervals: `summary.json` for programs, `summary.md` for people.

Definitions, for a metric (say coverage, the max over an episode of the covered share of the goal):

* a checkpoint's score is the mean over starts,
* `last10` is the mean score of the last ten evaluated checkpoints, or of all where there are fewer,
* `max` is the largest score of any checkpoint. It is picked *because* it is large, so it flatters the run;
* `max_fresh` is that checkpoint's score on starts that did not pick it, where `fresh.csv` holds them,
* the pooled value is the mean over training seeds of the seeds' own values.

Intervals are those of `immiscible_policy.evaluation.statistics`, cut to [0, 1]. That of `max` takes each
seed's checkpoint as given. Scores that are all alike (no success at all) give an interval of no width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from immiscible_policy.evaluation.statistics import (
    MEANINGS,
    Array,
    mean_interval,
    percentile_interval,
    two_level_bootstrap,
)
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.rows import EpisodeRow, Run

LAST = 10
METRICS = {
    "coverage": "max_coverage",
    "reward": "max_reward",
    "success": "success",
    "final_coverage": "final_coverage",
}
KINDS = ("last10", "max", "max_fresh")


@dataclass(frozen=True)
class Scores:
    """Scores of one training seed at every completely evaluated checkpoint.

    Attributes:
        steps: Training steps of the checkpoints, ascending (C,).
        starts: Seeds of the starts, ascending (N,).
        values: Per metric of `METRICS`, an array (C, N).
    """

    steps: list[int]
    starts: list[int]
    values: dict[str, Array]

    def at(self, steps: Sequence[int], starts: Sequence[int]) -> Scores:
        """The scores at some of the checkpoints and starts."""
        rows = np.ix_([self.steps.index(step) for step in steps], [self.starts.index(start) for start in starts])
        return Scores(list(steps), list(starts), {name: table[rows] for name, table in self.values.items()})

    def last10(self, metric: str) -> Array:
        """Mean over the last ten checkpoints, per start (N,)."""
        return self.values[metric][-LAST:].mean(0)

    def best(self, metric: str) -> tuple[int, Array]:
        """Step of the checkpoint of the largest mean (the earliest of equals), and its scores (N,)."""
        index = int(np.argmax(self.values[metric].mean(1)))
        return self.steps[index], self.values[metric][index]


def scores(rows: Mapping[int, Sequence[EpisodeRow]]) -> dict[int, Scores]:
    """Arrange rows by seed, checkpoint and start.

    The starts are the set on which most checkpoints were evaluated; a checkpoint that lacks one of them (an
    evaluation cut short) is left out, and so is a seed without a complete checkpoint.

    Args:
        rows: Rows of each training seed.

    Returns:
        Scores of each seed, all over the same starts.
    """
    tables = {seed: _by_checkpoint(of_seed) for seed, of_seed in rows.items()}
    counts: Counter[tuple[int, ...]] = Counter()
    for of_seed in tables.values():
        counts.update(tuple(sorted(by_start)) for by_start in of_seed.values())
    if not counts:
        return {}
    usual = max(counts, key=lambda found: (counts[found], len(found)))
    starts = list(usual)
    arranged = {seed: _scores(of_seed, starts) for seed, of_seed in tables.items()}
    return {seed: found for seed, found in arranged.items() if found.steps}


def fresh_scores(run: Run, chosen: Mapping[int, int], metric: str) -> dict[int, Array]:
    """Scores of each seed's chosen checkpoint on fresh starts.

    Args:
        run: The run.
        chosen: Step of the chosen checkpoint of each seed.
        metric: One of `METRICS`.

    Returns:
        By start that all seeds share, the scores of the seeds (S,); empty where some seed has none.
    """
    tables = [_by_checkpoint(run.fresh.get(seed, [])).get(step, {}) for seed, step in chosen.items()]
    starts = sorted(set.intersection(*(set(table) for table in tables)))
    return {start: np.array([float(getattr(table[start], METRICS[metric])) for table in tables]) for start in starts}


def summarize(run: Run) -> dict[str, Any]:
    """Summarise a run, per training seed and pooled, and write `summary.json` and `summary.md` into it.

    Args:
        run: The run, as `rows.read_run` reads it.

    Returns:
        The content of `summary.json`: `pooled` and each of `seeds` hold {coverage, reward, success,
        final_coverage} x {last10, max, max_fresh where known}, each {mean, low, high, over, bootstrap}; `max`
        also the checkpoint of each seed.

    Raises:
        ValueError: If no checkpoint was evaluated.
    """
    by_seed = scores(run.seeds)
    if not by_seed:
        raise ValueError(f"{run.dir} has no evaluated checkpoint to summarise")
    summary = {
        "starts": next(iter(by_seed.values())).starts,
        "checkpoints": {str(seed): found.steps for seed, found in by_seed.items()},
        "last10_checkpoints": {str(seed): min(LAST, len(found.steps)) for seed, found in by_seed.items()},
        "pooled": _block(run, by_seed),
        "seeds": {str(seed): _block(run, {seed: found}) for seed, found in by_seed.items()},
    }
    write_atomically(run.dir / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_atomically(run.dir / "summary.md", markdown(run.dir.name, summary).encode())
    return summary


def markdown(name: str, summary: Mapping[str, Any]) -> str:
    """The summary as text.

    Args:
        name: Title.
        summary: What `summarize` returns.

    Returns:
        Markdown.
    """
    counts = sorted(set(summary["last10_checkpoints"].values()))
    n_last = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    seeds, n_starts = list(summary["seeds"]), len(summary["starts"])
    lines = [
        f"# {name}",
        "",
        f"{_plural(len(seeds), 'training seed')} ({', '.join(seeds)}), {_plural(n_starts, 'start')}. "
        f"`last10`: mean of the last {n_last} evaluated checkpoint{'s' if counts[-1] > 1 else ''}; `max`: "
        "best checkpoint, chosen on the same starts and so flattered; `max_fresh`: it again on other starts.",
        "",
        "| | " + " | ".join(METRICS) + " |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for title, block in [("pooled", summary["pooled"]), *((f"seed {n}", summary["seeds"][n]) for n in seeds)]:
        for kind in KINDS:
            cells = [_cell(block[metric].get(kind)) for metric in METRICS]
            if any(cells):
                lines.append(f"| {title}, {kind} | " + " | ".join(cells) + " |")
    meaning = MEANINGS[summary["pooled"]["coverage"]["last10"]["over"]]
    lines += ["", f"Brackets: 95 % intervals. Pooled: {meaning}. Per seed: {MEANINGS['starts']}.", ""]
    return "\n".join(lines)


def _by_checkpoint(rows: Sequence[EpisodeRow]) -> dict[int, dict[int, EpisodeRow]]:
    table: dict[int, dict[int, EpisodeRow]] = {}
    for row in rows:
        table.setdefault(row.checkpoint, {})[row.start] = row
    return dict(sorted(table.items()))


def _scores(table: Mapping[int, Mapping[int, EpisodeRow]], starts: list[int]) -> Scores:
    whole = {step: by_start for step, by_start in table.items() if by_start.keys() >= set(starts)}
    values = {
        metric: np.array([[float(getattr(by_start[start], column)) for start in starts] for by_start in whole.values()])
        for metric, column in METRICS.items()
    }
    return Scores(list(whole), starts, values)


def _block(run: Run, by_seed: Mapping[int, Scores]) -> dict[str, Any]:
    return {metric: _metric_block(run, by_seed, metric) for metric in METRICS}


def _metric_block(run: Run, by_seed: Mapping[int, Scores], metric: str) -> dict[str, Any]:
    best = {seed: found.best(metric) for seed, found in by_seed.items()}
    chosen = {seed: step for seed, (step, _) in best.items()}
    block = {
        "last10": _estimate(np.stack([found.last10(metric) for found in by_seed.values()])),
        "max": _estimate(np.stack([values for _, values in best.values()])) | {"checkpoint": list(chosen.values())},
    }
    fresh = fresh_scores(run, chosen, metric)
    return block | {"max_fresh": _estimate(np.stack(list(fresh.values()), axis=1))} if fresh else block


def _estimate(values: Array) -> dict[str, Any]:
    """Mean of scores (seeds, starts) with its interval, a function of the scores alone (fixed stream)."""
    found = mean_interval(values)
    low, high = percentile_interval(two_level_bootstrap([values], np.random.default_rng(0)))
    return {
        "mean": found.estimate,
        "low": _bounded(found.low),
        "high": _bounded(found.high),
        "over": found.over,
        "bootstrap": [low, high],
    }


def _bounded(end: float) -> float | None:
    return None if math.isnan(end) else min(1.0, max(0.0, end))


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    if entry["low"] is None:
        return f"{entry['mean']:.3f}"
    return f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
