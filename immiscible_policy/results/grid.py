"""The table of a grid of runs: every arm's scores, and its paired difference from the first arm.

For every metric that the task summarises, per training seed and pooled: mean of the last ten checkpoints, the last one,
and the best, as `evaluation.scores` defines them; differences and their intervals as `compare` does. Steps and
seconds to a share of the first arm's best score are those of the first evaluated checkpoint that reaches it, in the
primary metric; seconds count training alone. Contrasts are tested once: the primary metric's `last10`, in one model of
all arms (`evaluation.contrasts`), corrected for the number of those that the experiment names. What selection did to
the noise is the audit of the last evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.evaluation.contrasts import POWER, contrasts
from immiscible_policy.evaluation.scores import (
    LAST,
    ScoresBySeed,
    common_steps,
    curves,
    kind_title,
    scores,
    set_scores,
    stacked,
)
from immiscible_policy.evaluation.statistics import MEANINGS, Interval, difference_arms, interval, mean_interval
from immiscible_policy.palette import COLOURS
from immiscible_policy.results.formatting import figures, text
from immiscible_policy.results.plots import arms_figure, learning_curves, selector_of
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import write_result
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric, summarised

SHARES = (0.80, 0.90, 0.95)
PREFIX, AUDIT = "noise/", ("distance_percent", "correlation", "prior_shift", "squared_norm")
KINDS = ("last10", "last", "max")

Document = dict[str, Any]
Published = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Published scores: by metric, arm and kind."""


def write_grid(
    out: Path,
    name: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    published: Published | None = None,
    named: Sequence[str] = (),
) -> str:
    """Write `NAME.json`, `NAME.md` and `NAME.png` of a grid, and return the table as Markdown.

    The arms are directories below `out`; the others are compared with the first. An arm that lacks one of `seeds`, or
    checkpoints, is called incomplete and not pooled. `published` is what a paper reports, to stand beside ours; `named`
    are the contrasts that were named before the runs, all arms if there are none.
    """
    runs = {arm: RunDirectory(out / arm) for arm in arms}
    missing = {arm: list(run.missing(seeds).unfinished if run.is_evaluated else seeds) for arm, run in runs.items()}
    tables = {
        arm: {seed: scored for seed, scored in scores(run.episodes()).items() if seed in seeds}
        for arm, run in runs.items()
        if not missing[arm]
    }
    first = tables.get(arms[0])
    alike = [arm for arm in tables if first is None or _comparable(runs, arm, arms[0], tables)]
    others = [arm for arm in named or arms if arm != arms[0] and (arm in alike or arm not in tables)]
    record = {
        "arms": {
            arm: _arm(runs[arm], tables[arm], first if arm in alike else None)
            if arm in tables
            else {"missing_seeds": missing[arm]}
            for arm in arms
        },
        "compared_with": arms[0],
        "contrasts": _contrasts(runs, {arm: tables[arm] for arm in alike}, arms[0], others),
        "published": published or {},
    }
    page = markdown(name, record)
    write_result(out / name, record, page, _picture(runs, tables, arms[0], alike) if tables else None)
    return page


def _comparable(runs: Mapping[str, RunDirectory], arm: str, first: str, tables: Mapping[str, ScoresBySeed]) -> bool:
    """Whether two arms are of one task, and were evaluated on the same starts."""
    starts = [next(iter(tables[name].values())).starts for name in (arm, first)]
    return runs[arm].task.name == runs[first].task.name and starts[0] == starts[1]


def _picture(
    runs: Mapping[str, RunDirectory], tables: Mapping[str, ScoresBySeed], first: str, alike: Sequence[str]
) -> Figure:
    """Learning curves of a few arms; of more than there are colours, their scores and, on one task, differences."""
    metrics = summarised(runs[next(iter(tables))].task)
    names = {metric.name for metric in metrics[:2]}
    tables = {arm: scored for arm, scored in tables.items() if names <= next(iter(scored.values())).values.keys()}
    if len(tables) <= len(COLOURS) or first not in tables:
        shown = dict(list(tables.items())[: len(COLOURS)])
        return learning_curves(shown, metrics[:2], selectors={arm: selector_of(runs[arm]) for arm in shown})
    last = {arm: stacked(scored, metrics[0], "last") for arm, scored in tables.items()}
    return arms_figure(
        {arm: values.mean(1).tolist() for arm, values in last.items()},
        {arm: mean_interval(values, metrics[0].is_proportion) for arm, values in last.items()},
        {
            arm: _paired(values, last[first], metrics[0])
            for arm, values in last.items()
            if arm != first and arm in alike
        },
        metrics[0],
        first,
    )


def _paired(a: np.ndarray, b: np.ndarray, metric: Metric) -> Interval:
    """A - B, paired by seed and start: the runs of a grid have the same of both."""
    return interval(difference_arms(a, b, same_seeds=True), metric.is_proportion)


def _mean(values: np.ndarray, metric: Metric) -> Document:
    """Mean of scores (seeds, starts) with its interval, within the metric's range."""
    return figures(mean_interval(values, metric.is_proportion), cut=(metric.low, metric.high))


def _contrasts(
    runs: Mapping[str, RunDirectory], tables: Mapping[str, ScoresBySeed], first: str, named: Sequence[str]
) -> Document:
    """The primary metric's `last10` of complete arms against the first, in one model; empty if that is incomplete.

    `named` are all that are to be compared, complete or not: so many comparisons p is corrected for.
    """
    if first not in tables or len(tables) < 2:
        return {}
    metric = summarised(runs[first].task)[0]
    arms = {arm: stacked(scored, metric, "last10") for arm, scored in tables.items()}
    chosen = [arm for arm in arms if arm in named]
    results = contrasts(arms, first, chosen, proportion=metric.is_proportion, count=len(named))
    return {
        "metric": metric.name,
        "kind": "last10",
        "power": POWER,
        "arms": {
            arm: figures(result.interval)
            | {key: None if math.isnan(p) else p for key, p in (("p", result.p), ("p_holm", result.p_holm))}
            | {"detectable": result.detectable}
            for arm, result in results.items()
        },
    }


def _arm(run: RunDirectory, own: ScoresBySeed, first: ScoresBySeed | None) -> Document:
    """The figures of a complete arm; what needs the first arm only if that is complete too."""
    metrics = {metric.name: metric for metric in summarised(run.task)}
    primary = next(iter(metrics.values()))
    audits = [audit for seed, audit in last_audits(run).items() if seed in own]
    values = {name: {kind: stacked(own, metric, kind) for kind in KINDS} for name, metric in metrics.items()}
    arm: Document = {
        "missing_seeds": [],
        "origin": run.origin,
        "steps": run.config["steps"],
        "averaged": min(LAST, *(len(scored.steps) for scored in own.values())),
        "scores": {
            name: {kind: _mean(scored, metrics[name]) for kind, scored in of.items()} for name, of in values.items()
        },
        "seeds": {
            str(seed): {
                metric: {kind: float(scored[row].mean()) for kind, scored in of.items()}
                for metric, of in values.items()
            }
            for row, seed in enumerate(own)
        },
        "together": {
            metric.name: figures(mean_interval(stacked(set_scores(own, [metric]), metric, "last10")))
            for metric in run.task.set_metrics
        },
        "noise": {
            PREFIX + key: float(np.mean([audit[key] for audit in audits]))
            for key in AUDIT
            if audits and all(key in audit for audit in audits)
        },
        "curve": _curve(own, None if first is own else first, primary),
    }
    if first is not None:
        arm["to_quality"] = _to_quality(run, own, first, primary)
    if first is not None and first is not own:
        arm["difference"] = {
            name: {
                kind: figures(_paired(scored, stacked(first, metrics[name], kind), metrics[name]))
                for kind, scored in of.items()
            }
            for name, of in values.items()
        }
    return arm


def _curve(own: ScoresBySeed, first: ScoresBySeed | None, metric: Metric) -> list[Document]:
    """A metric at every evaluated step that all seeds share, and its paired difference from the first arm's."""
    steps = common_steps(own, first or {})
    values = curves(own, metric.name, steps)  # (S, C, N)
    curve: list[Document] = [
        {"step": step, metric.name: _mean(values[:, place], metric)} for place, step in enumerate(steps)
    ]
    if first is not None:
        others = curves(first, metric.name, steps)
        for place, point in enumerate(curve):
            point["difference"] = figures(_paired(values[:, place], others[:, place], metric))
    return curve


def _to_quality(run: RunDirectory, own: ScoresBySeed, first: ScoresBySeed, metric: Metric) -> Document:
    """Steps and seconds of each seed to shares of the first arm's best score, its best mean over seeds.

    A share is divided by where lower is better: 0.80 stands for 1.25 of the score. None where no evaluated checkpoint
    reaches it. Nothing where the best is 0 or negative: shares of it mean nothing.
    """
    means = [metric.sign * of_seed.values[metric.name].mean(axis=1) for of_seed in first.values()]
    comparable = len({len(curve) for curve in means}) == 1
    best = metric.sign * float(np.mean(means, axis=0).max()) if comparable else math.nan
    if best <= 0:
        return {}
    rows = {seed: [row for row in run.seed(seed).metrics() if "seconds" in row] for seed in own}
    reached: Document = {}
    for share in SHARES:
        target = best * share**metric.sign
        steps: dict[str, int | None] = {}
        seconds: dict[str, float | None] = {}
        for seed, scored in own.items():
            better = metric.sign * scored.values[metric.name].mean(axis=1) >= metric.sign * target
            step = scored.steps[int(better.argmax())] if better.any() else None
            took = [row["seconds"] for row in rows[seed] if step is not None and row["step"] <= step]
            steps[str(seed)], seconds[str(seed)] = step, None if step is None else round(sum(took), 1)
        reached[f"{share:.2f}"] = {metric.name: target, "steps": steps, "seconds": seconds}
    return reached


def last_audits(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The last noise audit of each training seed that has one: its known quantities by name, and its `step`."""
    audits = {}
    for seed in run.seeds():
        rows = [row for row in run.seed(seed).metrics() if any(key.startswith(PREFIX) for key in row)]
        for row in rows[-1:]:
            known = {key: value for key, value in row.items() if key.startswith(PREFIX) and value is not None}
            audits[seed] = {"step": row["step"]} | {key.removeprefix(PREFIX): known[key] for key in known}
    return audits


def markdown(name: str, record: Document) -> str:
    """What `write_grid` puts into JSON as Markdown under a title."""
    first, arms = record["compared_with"], record["arms"]
    complete = {arm: entry for arm, entry in arms.items() if not entry["missing_seeds"]}
    metrics = list(dict.fromkeys(metric for entry in complete.values() for metric in entry["scores"]))
    differences = f"Differences are paired by seed and start with {first}."
    if any("to_quality" not in entry for entry in complete.values()) and first in complete:
        differences += " Arms of other tasks are not compared with it."
    over = {scores["last10"]["over"] for entry in complete.values() for scores in entry["scores"].values()}
    meaning = "; ".join(MEANINGS[kind] for kind in sorted(over - {None, "nothing"}))
    evaluated = [entry["averaged"] for entry in complete.values()]
    last = kind_title("last10", max(evaluated, default=LAST))
    fewer = " (of all where there are fewer)" if len(set(evaluated)) > 1 else ""
    parts = [
        f"# {name}",
        f"`{last}`: mean of the last {last.removeprefix('last ')} evaluated checkpoints{fewer}; `last`: the last of "
        "them; `max`: the best, selected on the same starts, so too optimistic. "
        f"Brackets: 95% intervals{f' {meaning}' if meaning else ''}. {differences}",
    ]
    parts += [
        f"**{arm} is incomplete**: seeds {', '.join(map(str, entry['missing_seeds']))} are missing or not trained to "
        "the end; it is not pooled."
        for arm, entry in arms.items()
        if entry["missing_seeds"]
    ]
    if tested := record["contrasts"]:
        parts.append(_contrast_table(tested, first, last))
    parts += [_score_table(metric, arms, first, last, record["published"].get(metric, {})) for metric in metrics]
    if complete:
        kinds = [(metric, kind) for metric in metrics for kind in KINDS]
        rows = [
            [
                f"{arm}, seed {seed}",
                *(f"{values[metric][kind]:.3f}" if metric in values else "" for metric, kind in kinds),
            ]
            for arm, entry in complete.items()
            for seed, values in entry["seeds"].items()
        ]
        heads = [f"{metric}, {last if kind == 'last10' else kind}" for metric, kind in kinds]
        parts.append(table(["per seed", *heads], rows))
    if keys := list(dict.fromkeys(key for entry in complete.values() for key in entry["together"])):
        rows = [[arm, *(text(entry["together"].get(key)) for key in keys)] for arm, entry in complete.items()]
        parts.append(table([f"all episodes together, {last}", *keys], rows))
    if first in complete:
        parts.append(_quality_table(complete, first))
    if keys := list(dict.fromkeys(key for entry in complete.values() for key in entry["noise"])):
        rows = [
            [arm, *(f"{entry['noise'][key]:.3f}" if key in entry["noise"] else "" for key in keys)]
            for arm, entry in complete.items()
        ]
        parts.append(table(["noise audit", *(key.removeprefix(PREFIX).replace("_", " ") for key in keys)], rows))
    return "\n\n".join(parts) + "\n"


def _score_table(
    metric: str, arms: Document, first: str, last: str, published: Mapping[str, Mapping[str, float]]
) -> str:
    """Scores, then differences from the first arm, which has none, then what is published."""
    titles = [last, *KINDS[1:]]
    header = [metric, *titles, *(f"{title} - {first}" for title in titles)]
    kinds = list(next(iter(published.values()))) if published else []
    if published:
        header.append(f"published {', '.join(kinds)}")
    rows = []
    for arm, entry in arms.items():
        if metric not in entry.get("scores", {metric: {}}):
            continue  # an arm of another task
        if entry["missing_seeds"]:
            cells = ["incomplete"] * 2 * len(KINDS)
        else:
            differences = entry.get("difference", {}).get(metric, {})
            cells = [text(entry["scores"][metric][kind]) for kind in KINDS]
            cells += [text(differences.get(kind), "+.3f") for kind in KINDS]
        if published:
            cells.append(", ".join(f"{published[arm][kind]:.3f}" for kind in kinds) if arm in published else "")
        rows.append([arm, *cells])
    return table(header, rows)


def _contrast_table(tested: Document, first: str, last: str) -> str:
    """One row a contrast: difference, p alone and corrected, and what could have been detected."""
    rows = []
    for arm, entry in tested["arms"].items():
        least = f"{entry['detectable']:.3f}" if entry["detectable"] else "unknown"
        p, holm = ("-" if entry[key] is None else f"{entry[key]:.2g}" for key in ("p", "p_holm"))
        rows.append([arm, text(entry, "+.3f"), p, holm, least])
    name = f"{tested['metric']}, {last}"
    power = f"detectable with power {tested['power']:.0%}"
    return table([f"{name}, one model of all arms", f"- {first}", "p", "p (Holm)", power], rows)


def _quality_table(complete: Document, first: str) -> str:
    rows = []
    for arm, entry in complete.items():
        row = [arm]
        for reached in entry.get("to_quality", {}).values():
            pairs = zip(reached["steps"].values(), reached["seconds"].values(), strict=True)
            row.append(", ".join("never" if step is None else f"{step:,} ({took:,.0f} s)" for step, took in pairs))
        rows += [row] if len(row) > 1 else []
    shares = complete[first].get("to_quality", {})
    targets = {
        share: next(reached[key] for key in reached.keys() - {"steps", "seconds"}) for share, reached in shares.items()
    }
    falling = list(targets.values()) != sorted(targets.values())  # where lower is better, a smaller share lies higher
    heads = [
        f"{target:.3f}: " + (f"{1 / float(share):.2f} times" if falling else f"{share} of") + f" {first}'s best"
        for share, target in targets.items()
    ]
    return table(["steps (seconds) to", *heads], rows)
