"""The tables of a report, as data; `templates/report.html` says where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from immiscible_policy.evaluation.scores import LAST
from immiscible_policy.evaluation.statistics import Interval, mean_interval
from immiscible_policy.palette import BASELINE, colours
from immiscible_policy.results.compare import Result
from immiscible_policy.results.interval import brackets
from immiscible_policy.results.plots import title_of
from immiscible_policy.results.report.evidence import (
    Contrast,
    Evidence,
    ReportedRun,
    by_start,
    differing_settings,
)
from immiscible_policy.results.report.words import minus, outcome, p_value, setting, signed
from immiscible_policy.tasks import Metric

KINDS = {
    "last10": f"mean of the last {LAST} checkpoints, or of all where there are fewer",
    "max": "the best checkpoint, chosen on these starts and therefore too optimistic",
    "max_fresh": "that checkpoint on held-out starts",
}
QUANTITIES = {
    "distance_percent": ("distance to the data, change in %", "0"),
    "squared_norm": ("mean squared norm", "numbers per chunk"),
    "variance": ("variance of all numbers", "1"),
    "ks": ("Kolmogorov-Smirnov distance to N(0, 1)", "0"),
    "correlation": ("correlation with the data", "0"),
    "prior_shift": ("mean noise given a condition", "0"),
    "selection_ms": ("time of one selection, ms", ""),
}
"""What the training records of its noise, in words, and what plain noise would give."""
MEASURES = ("majority", "total_variation", "coverage")
"""What `modality.json` holds of each checkpoint (`lab.modality`)."""


class Bar(NamedTuple):
    """An interval about 0, in percent of a cell's width; `sure` where 0 lies outside."""

    low: float
    estimate: float
    high: float
    sure: bool


class Cell(NamedTuple):
    """A value, its interval on a line of its own, and the interval as a bar."""

    value: str
    span: str = ""
    bar: Bar | None = None


Rows = list[list[Cell | str]]


class PageTable(NamedTuple):
    """A table whose first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Rows


def first_table(evidence: Evidence) -> PageTable:
    """One run: its scores. Two: the scores of both and their differences. More: the main result of each."""
    compared = [contrast for contrast in evidence.contrasts if contrast.comparison]
    if not evidence.contrasts:
        return _scores_alone(evidence)
    if len(evidence.contrasts) == 1:
        return _scores_of_two(evidence)
    results = [contrast.comparison.headline for contrast in compared if contrast.comparison]
    rows: Rows = [
        [f"{contrast.run.name}{' (incomplete)' * bool(contrast.run.gaps)}", *cells, outcome(contrast)]
        for contrast, cells in zip(compared, _result_cells(evidence, results), strict=True)
    ]
    reference, measured, metric = evidence.reference.name, evidence.task.measured, _spoken(evidence.metrics[0].name)
    caption = f"Mean {measured}, last {LAST} common checkpoints or all, against {reference}; 95 % intervals in brackets"
    return PageTable(caption, ["run", "difference", metric, f"{reference}, same checkpoints", "verdict"], rows)


def all_scores(evidence: Evidence, contrast: Contrast) -> PageTable:
    """Every score of two runs that were compared."""
    assert contrast.comparison is not None
    results = contrast.comparison.results
    rows: Rows = [
        [f"{_spoken(result.metric)}, {result.kind}", *cells, _seeds_won(result), _needed(result)]
        for result, cells in zip(results, _result_cells(evidence, results), strict=True)
    ]
    a, b = contrast.run.name, contrast.reference.name
    heads = ["", "difference", a, b, "seeds won", "needed to exclude 0: starts, or seeds"]
    return PageTable(f"All scores of {a} and {b}", heads, rows)


def curve_table(evidence: Evidence, metric: Metric) -> PageTable:
    """A metric at every checkpoint."""
    by_run = {name: dict(zip(curve.steps, curve.means, strict=True)) for name, curve in evidence.curves(metric).items()}
    rows: Rows = [
        [f"{step:,}", *(_score(means[step], metric) if step in means else "" for means in by_run.values())]
        for step in sorted(set().union(*by_run.values()))
    ]
    caption = f"{title_of(metric)}: mean at each checkpoint, 95 % intervals in brackets"
    return PageTable(caption, ["step", *by_run], rows)


def start_table(evidence: Evidence, contrast: Contrast) -> PageTable:
    """The primary metric at every start, the greatest difference first."""
    metric = evidence.metrics[0].name
    differences = sorted(by_start(contrast, metric), key=lambda item: -item.difference.estimate)
    rows: Rows = [
        [str(item.start), f"{item.a:.3f}", f"{item.b:.3f}", _difference(item.difference)] for item in differences
    ]
    caption = f"{_spoken(metric)}, last10, at each start; brackets: 95 % intervals {differences[0].difference.meaning}"
    return PageTable(caption, ["start", contrast.run.name, contrast.reference.name, "difference"], rows)


def mode_colours(run: ReportedRun) -> dict[str, str]:
    """A colour for each behaviour; undecided rollouts are grey."""
    *names, undecided = run.modes["names"]
    return colours(names) | {undecided: BASELINE}


def mode_rows(runs: Sequence[ReportedRun]) -> dict[str, list[float]]:
    """Shares of the behaviours at the last checkpoint of each run, and in the demonstrations."""
    rows = {f"{run.name}, step {run.modes['steps'][-1]:,}": run.modes["shares"][-1] for run in runs}
    demonstrated = list(dict.fromkeys(tuple(run.modes["demonstrated"]) for run in runs))
    for number, counts in enumerate(demonstrated, start=1):
        name = f"demonstrations {number}" if len(demonstrated) > 1 else "demonstrations"
        rows[name] = [count / sum(counts) for count in counts]
    return rows


def mode_table(runs: Sequence[ReportedRun]) -> PageTable:
    """How evenly the behaviours are spread, beside what chance alone gives."""
    rows: Rows = []
    for measure in MEASURES:
        last = [run.modes[measure][-1] for run in runs]
        rows.append([_spoken(measure), *map(_measured, last)])
        if any("floor" in entry for entry in last):
            floors = ["" if entry.get("floor") is None else f"{entry['floor']:.3f}" for entry in last]
            rows.append([f"{_spoken(measure)}, floor", *floors])
    heads = ["", *(f"{run.name}, step {run.modes['steps'][-1]:,}" for run in runs)]
    return PageTable("Behaviours at the last checkpoint, 95 % intervals in brackets", heads, rows)


def audit_table(evidence: Evidence) -> PageTable:
    """What selection does to the noise, beside what plain noise gives."""
    runs = [run for run in evidence.runs if run.audits]
    keys = dict.fromkeys(key for run in runs for audit in run.audits.values() for key in audit if key != "step")
    rows: Rows = []
    for key in keys:
        unnamed = _spoken(key).replace("target variance", "variance left in the target, alpha-bar")
        rows.append([*QUANTITIES.get(key, (unnamed, "")), *(_audited(run, key) for run in runs)])
    steps = [" and ".join(sorted({f"{audit['step']:,}" for audit in run.audits.values()})) for run in runs]
    heads = ["", "plain noise", *(f"{run.name}, step {step}" for run, step in zip(runs, steps, strict=True))]
    return PageTable("Noise audit, mean over training seeds", heads, rows)


def settings_table(evidence: Evidence) -> PageTable:
    """What the runs do not have in common."""
    settings = [run.run.settings for run in evidence.runs]
    rows: Rows = [
        [key, *(setting(of_run.get(key)) for of_run in settings)] for key in differing_settings(evidence.runs)
    ]
    return PageTable("Settings that differ between the runs", ["", *(run.name for run in evidence.runs)], rows)


def _scores_alone(evidence: Evidence) -> PageTable:
    run = evidence.reference
    rows: Rows = [
        [_spoken(metric.name), _score(mean_interval(values), metric)]
        for metric in evidence.metrics
        for values in [np.stack([table.last10(metric.name) for table in run.scores.values()])]
    ]
    return PageTable(f"Scores of {run.name}, {KINDS['last10']}; 95 % intervals in brackets", ["", run.name], rows)


def _scores_of_two(evidence: Evidence) -> PageTable:
    (contrast,) = evidence.contrasts
    a, b = contrast.run.name, contrast.reference.name
    primary, results = evidence.metrics[0].name, contrast.comparison.results if contrast.comparison else []
    shown = {
        "best checkpoint, held-out starts" if result.kind == "max_fresh" else _spoken(result.metric): result
        for result in results
        if result.kind == "last10" or (result.metric, result.kind) == (primary, "max_fresh")
    }
    rows: Rows = [
        [name, *cells] for name, cells in zip(shown, _result_cells(evidence, list(shown.values())), strict=True)
    ]
    return PageTable(f"Scores of {a} and {b}, 95 % intervals in brackets", ["", f"{a} \N{MINUS SIGN} {b}", a, b], rows)


def _result_cells(evidence: Evidence, results: Sequence[Result]) -> list[list[Cell]]:
    """Of each result the difference, with its bar on a common scale, and the two scores."""
    ends = [abs(end) for result in results for end in (result.difference.low, result.difference.high)]
    reach = 1.05 * max([1e-3, *(end for end in ends if not math.isnan(end))])
    metrics = {metric.name: metric for metric in evidence.metrics}
    return [
        [_difference(result.difference, reach), *(_score(x, metrics[result.metric]) for x in (result.a, result.b))]
        for result in results
    ]


def _difference(interval: Interval, reach: float | None = None) -> Cell:
    bar = None
    if reach is not None and not math.isnan(interval.low):
        ends = (interval.low, interval.estimate, interval.high)
        low, estimate, high = (round(50 + 50 * value / reach, 2) for value in ends)
        bar = Bar(low, estimate, high, interval.excludes_zero)
    return Cell(signed(interval.estimate), minus(brackets(interval, "+.3f")), bar)


def _score(interval: Interval, metric: Metric) -> Cell:
    """A mean with its interval, cut to the metric's range."""
    return Cell(minus(f"{interval.estimate:.3f}"), minus(brackets(interval, cut=(metric.low, metric.high))))


def _measured(entry: Mapping[str, Any]) -> Cell | str:
    return "nothing decided" if entry["mean"] is None else Cell(f"{entry['mean']:.3f}", brackets(entry, cut=(0, 1)))


def _audited(run: ReportedRun, key: str) -> Cell | str:
    values = [audit[key] for audit in run.audits.values() if key in audit]
    if not values:
        return ""
    mean = mean_interval(np.array(values)[:, None])
    return Cell(minus(f"{mean.estimate:.4g}"), minus(brackets(mean, ".4g")))


def _seeds_won(result: Result) -> str:
    test = result.over_seeds
    return "not paired" if test is None else f"{test.wins} : {test.losses}, {p_value(test.p)}"


def _needed(result: Result) -> str:
    if result.difference.excludes_zero:
        return "enough"
    sizes = (result.needed.starts, result.needed.seeds)
    return ", ".join("unknown" if math.isnan(n) else "never" if math.isinf(n) else f"{n:,.0f}" for n in sizes)


def _spoken(name: str) -> str:
    return name.replace("_", " ")
