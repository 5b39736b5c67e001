"""What a run achieved, with intervals: `summary.json` for programs, `summary.md` for people.

What `last10`, `max` and `max_fresh` mean is said in `immiscible_policy.evaluation.scores`; the pooled value is the mean
over training seeds of the seeds' own values. Intervals are those of `immiscible_policy.evaluation.statistics`, cut to
the metric's range. That of `max` takes each seed's checkpoint as given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from immiscible_policy.evaluation.scores import (
    KINDS,
    LAST,
    ScoresBySeed,
    best_steps,
    finished,
    fresh_scores,
    kind_title,
    scores,
    set_scores,
    spoken,
    stacked,
)
from immiscible_policy.evaluation.statistics import MEANINGS, Array, count, mean_interval
from immiscible_policy.results import formatting
from immiscible_policy.results.table import literal, table
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric, SetMetric, Task, summarised


def summarize(run: RunDirectory) -> dict[str, Any]:
    """Summarise a run, per training seed and pooled, and write `summary.json` and `summary.md` into it.

    Seeds that were not evaluated to the end are named with their last step and not pooled, unless none was.

    Returns:
        The content of `summary.json`: `pooled` and each of `seeds` hold {metric} x {last10, max, max_fresh where
        known} for the metrics that the task summarises, and last10 for its set metrics, each {mean, low, high, over};
        `max` also the checkpoint of each seed. `unfinished` is the last evaluated step of each seed that is
        not pooled.

    Raises:
        ValueError: If no checkpoint was evaluated.
    """
    by_seed, unfinished = scores(run.episodes()), run.missing().unfinished
    summary = {
        "unfinished": {str(seed): step for seed, step in unfinished.items()},
        "starts": next(iter(by_seed.values())).starts,
        "checkpoints": {str(seed): scored.steps for seed, scored in by_seed.items()},
        "last10_checkpoints": {str(seed): min(LAST, len(scored.steps)) for seed, scored in by_seed.items()},
        "pooled": _block(run, finished(by_seed, unfinished)),
        "seeds": {str(seed): _block(run, {seed: scored}) for seed, scored in by_seed.items()},
    }
    run.write_summary(summary, markdown(run.name, summary, run.task))
    return summary


def markdown(name: str, summary: Mapping[str, Any], task: Task) -> str:
    """What `summarize` returns as Markdown under a title."""
    counts = sorted(set(summary["last10_checkpoints"].values()))
    n_last = " to ".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))
    seeds, metrics = list(summary["seeds"]), list(summary["pooled"])
    blocks = {"pooled": summary["pooled"]} | {f"seed {seed}": summary["seeds"][seed] for seed in seeds}
    rows = [
        [f"{title}, {kind_title(kind, counts[0])}", *(formatting.text(block[metric].get(kind)) for metric in metrics)]
        for title, block in blocks.items()
        for kind in KINDS
        if any(kind in block[metric] for metric in metrics)
    ]
    unfinished = summary["unfinished"]
    whole = [seed for seed in seeds if seed not in unfinished]
    pooled = f"pooled: seed {', '.join(whole)}" if whole else "no seed is finished, all are pooled as far as they are"
    warning = f"**Unfinished: {spoken(unfinished)}; {pooled}.**\n\n" if unfinished else ""
    over, place = summary["pooled"][metrics[0]]["last10"]["over"], task.scored_on
    fresh = any("max_fresh" in block[metrics[0]] for block in blocks.values())
    fresh_note = "; `max_fresh`: the same checkpoint on held-out starts" if fresh else ""
    meanings = {kind: text.replace("start", place) for kind, text in MEANINGS.items()}
    return f"""\
# {literal(name)}

{warning}{count(len(seeds), "training seed")} ({", ".join(seeds)}), {count(len(summary["starts"]), place)}. \
`last {counts[0]}`: mean of the last {n_last} evaluated checkpoint{"s" if counts[-1] > 1 else ""}; `max`: best \
checkpoint, selected on the same {place}s, so too optimistic{fresh_note}.

{table(["", *metrics], rows)}

Brackets: 95% intervals. Pooled: {meanings[over]}. Per seed: {meanings["starts"]}.
"""


def _block(run: RunDirectory, by_seed: ScoresBySeed) -> dict[str, Any]:
    """Estimates by metric and kind."""
    block: dict[str, Any] = {}
    for metric in summarised(run.task):
        chosen = best_steps(by_seed, metric)
        kinds = {kind: _estimate(stacked(by_seed, metric, kind), metric) for kind in ("last10", "max")}
        kinds["max"]["checkpoint"] = list(chosen.values())
        if fresh := fresh_scores(run, chosen, metric.name):
            kinds["max_fresh"] = _estimate(np.stack(list(fresh.values()), axis=1), metric)
        block[metric.name] = kinds
    together = set_scores(by_seed, run.task.set_metrics)
    for of_all in run.task.set_metrics:
        block[of_all.name] = {"last10": _estimate(stacked(together, of_all, "last10"), of_all)}
    return block


def _estimate(values: Array, metric: Metric | SetMetric) -> dict[str, Any]:
    """Mean of scores (seeds, starts) with its interval."""
    return formatting.figures(mean_interval(values, metric.is_proportion), cut=(metric.low, metric.high))
