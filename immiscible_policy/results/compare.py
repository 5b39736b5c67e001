"""Compare two runs over the same starts: paired differences, what they can tell, and what they cannot."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.scores import (
    LAST,
    Scores,
    best_steps,
    common_steps,
    finished,
    fresh_scores,
    kind_title,
    scores,
    set_scores,
    spoken,
    stacked,
)
from immiscible_policy.evaluation.statistics import (
    POWER,
    Array,
    Interval,
    Needed,
    SignTest,
    detectable,
    difference_arms,
    episodes_needed,
    interval,
    mean_interval,
    needed_sentence,
    sign_test,
)
from immiscible_policy.results.formatting import brackets, text
from immiscible_policy.results.plots import learning_curves, selector_of
from immiscible_policy.results.table import literal, table
from immiscible_policy.results.writer import finite, write_result
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric, SetMetric, summarised


@dataclass(frozen=True)
class Result:
    """One score (`kind` is one of `scores.KINDS`) of A and B, and the difference A - B.

    Attributes:
        checkpoints: How many checkpoints `last10` is the mean of.
        over_seeds: Sign test over training seeds; None where the runs' seeds differ.
        over_episodes: Sign test over (seed, start) pairs, or over starts where the seeds differ.
        detectable: The smallest true difference that is detected with a power of 80%.
        needed: How large an experiment detects the observed difference so; `needed_words` says the same.
        together: Whether it is a number of all episodes of a checkpoint together, one for each seed.
    """

    metric: str
    kind: str
    checkpoints: int
    lower_is_better: bool
    a: Interval
    b: Interval
    difference: Interval
    over_seeds: SignTest | None
    over_episodes: SignTest
    detectable: float
    needed: Needed
    needed_words: str
    together: bool = False

    @property
    def name(self) -> str:
        """Metric and kind."""
        return f"{self.metric}, {kind_title(self.kind, self.checkpoints)}"

    @property
    def ratio(self) -> float:
        """Mean of A over mean of B; NaN where B is 0."""
        return self.a.estimate / self.b.estimate if self.b.estimate else math.nan

    @property
    def a_is_better(self) -> bool:
        """Whether A has the better mean."""
        return (self.difference.estimate < 0) == self.lower_is_better


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, as their directories `a` and `b`.

    Attributes:
        paired: Whether the seeds are the same, so that differences are paired by seed as well as by start.
        starts: Starts that both were evaluated on.
        checkpoints: Checkpoints that every seed of both was evaluated at.
        notes: What the reader has to know, in words.
        results: The scores, last10 before max before max_fresh within each metric, the primary metric first; then
            last10 of the task's set metrics.
    """

    a: str
    b: str
    seeds_a: list[int]
    seeds_b: list[int]
    paired: bool
    starts: list[int]
    checkpoints: list[int]
    notes: list[str]
    results: list[Result]

    @property
    def headline(self) -> Result:
        """The result that the comparison is about: the primary metric, mean of the last checkpoints."""
        return self.results[0]


def compare(a: RunDirectory, b: RunDirectory) -> Comparison:
    """Compare two runs at the checkpoints and on the starts that they share: a function of the episodes alone.

    Raises ValueError if they are of different tasks, or share no start or no checkpoint.
    """
    if a.task.name != b.task.name:
        raise ValueError(f"{a.path} is of task={a.task.name} and {b.path} of task={b.task.name}; compare runs of one")
    unfinished = {"A": a.missing().unfinished, "B": b.missing().unfinished}
    of_either = unfinished["A"].keys() | unfinished["B"].keys()
    own = [finished(scores(run.episodes()), seeds) for run, seeds in zip((a, b), unfinished.values(), strict=True)]
    of_both = [{seed: scored for seed, scored in table.items() if seed not in of_either} for table in own]
    whole_a, whole_b = of_both if all(of_both) else own
    everyone = [*whole_a.values(), *whole_b.values()]
    starts = sorted(set.intersection(*(set(scored.starts) for scored in everyone)))
    steps = common_steps(whole_a, whole_b)
    if not starts:
        raise ValueError(f"{a.path} and {b.path} share no start; evaluate both on the same starts")
    if not steps:
        raise ValueError(f"{a.path} and {b.path} share no checkpoint; evaluate both at the same steps")
    of_a, of_b = ({seed: scored.at(steps, starts) for seed, scored in whole.items()} for whole in (whole_a, whole_b))
    paired, n_last = list(of_a) == list(of_b), min(LAST, len(steps))
    results = []
    for metric in summarised(a.task):
        for kind in ("last10", "max"):
            values = stacked(of_a, metric, kind), stacked(of_b, metric, kind)
            results.append(_result(metric, kind, n_last, *values, paired))
        best_a, best_b = best_steps(of_a, metric), best_steps(of_b, metric)
        fresh_a, fresh_b = fresh_scores(a, best_a, metric.name), fresh_scores(b, best_b, metric.name)
        if common := sorted(fresh_a.keys() & fresh_b.keys()):
            values_a, values_b = (np.stack([of[start] for start in common], axis=1) for of in (fresh_a, fresh_b))
            results.append(_result(metric, "max_fresh", n_last, values_a, values_b, paired))
    sets = [set_scores(of, a.task.set_metrics) for of in (of_a, of_b)]
    for together in a.task.set_metrics:
        values_a, values_b = (stacked(of, together, "last10") for of in sets)
        results.append(replace(_result(together, "last10", n_last, values_a, values_b, paired), together=True))
    notes = [
        *_unfinished_seeds(unfinished, {*of_a, *of_b}),
        *_notes(everyone, starts, steps, paired, min(len(of_a), len(of_b))),
        _differing_settings(a.settings, b.settings),
        f"The result is {results[0].name}: the other rows read the same episodes again, and max picks its "
        "checkpoint on them.",
    ]
    return Comparison(str(a.path), str(b.path), list(of_a), list(of_b), paired, starts, steps, notes, results)


def verdict(result: Result) -> str:
    """What one result says, in one or two plain sentences, whether or not there is a difference."""
    difference = result.difference
    stated = f"A - B = {difference.estimate:+.4f}"
    if math.isnan(difference.low):
        return f"{result.name}: {stated}; {difference.meaning}, so nothing can be concluded."
    span = f"{stated}, 95% interval {brackets(difference, '+.4f')} {difference.meaning}"
    if not difference.excludes_zero:
        least = f"With a power of {100 * POWER:.0f}% such an experiment detects {result.detectable:.3f}."
        if not result.detectable:
            alike = "All differences are alike, so what such an experiment detects is unknown."
            least = alike if difference.estimate else "All scores of the two runs are the same."
        return f"{result.name}: no difference detected. {span}; the interval contains 0. {least}"
    better, worse = "AB" if result.a_is_better else "BA"
    return f"{result.name}: {better} is better than {worse}. {span}; the interval does not contain 0."


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    notes, verdicts = ("\n".join(f"- {line}" for line in lines) for lines in
                       (comparison.notes, map(verdict, comparison.results)))  # fmt: skip
    return f"""\
# {literal(RunDirectory(comparison.a).name)} (A) against {literal(RunDirectory(comparison.b).name)} (B)

{notes}

**{verdict(comparison.headline)}**

{comparison.headline.needed_words}

{table(columns(comparison), [cells(result) for result in comparison.results])}

{verdicts}
"""


def content(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; what is infinite or unknown is None."""
    values = asdict(comparison)
    for entry, result in zip(values["results"], comparison.results, strict=True):
        entry |= {"ratio": result.ratio, "verdict": verdict(result)}
    return finite(values)


def write_comparison(out: Path, comparison: Comparison, a: RunDirectory, b: RunDirectory) -> list[Path]:
    """Write the comparison of a and b into a directory, as JSON, Markdown and a picture, and return the files."""
    runs = {f"A {a.name}": a, f"B {b.name}": b}
    shown = summarised(a.task)[:2]
    names = {metric.name for metric in shown}
    picture = learning_curves(
        {label: finished(scores(run.episodes()), run.missing().unfinished) for label, run in runs.items()},
        shown,
        differences={result.name: result.difference for result in comparison.results if result.metric in names},
        selectors={label: selector_of(run) for label, run in runs.items()},
    )
    return write_result(out / "comparison", content(comparison), markdown(comparison), picture)


def columns(comparison: Comparison) -> list[str]:
    """Header of a table of results."""
    units = "pairs" if comparison.paired else "starts"
    return ["", "A", "B", "A - B [95%]", "A / B", "A:B by seeds", f"A:B by {units}", "needed starts, seeds"]


def cells(result: Result) -> list[str]:
    """Row of a table of results."""
    return [
        result.name,
        f"{result.a.estimate:.3f}",
        f"{result.b.estimate:.3f}",
        text(result.difference, "+.3f"),
        "-" if math.isnan(result.ratio) else f"{result.ratio:.3f}",
        "-" if result.over_seeds is None else _sign(result.over_seeds),
        _sign(result.over_episodes),
        "enough" if result.difference.excludes_zero else result.needed.text,
    ]


def _result(metric: Metric | SetMetric, kind: str, n_last: int, a: Array, b: Array, paired: bool) -> Result:
    arms = difference_arms(a, b, same_seeds=paired)
    difference, needed = interval(arms, metric.is_proportion), episodes_needed(arms)
    return Result(
        metric.name,
        kind,
        n_last,
        metric.lower_is_better,
        mean_interval(a, metric.is_proportion),
        mean_interval(b, metric.is_proportion),
        difference,
        sign_test(metric.sign * arms[0].mean(1)) if paired else None,
        sign_test(metric.sign * (arms[0] if paired else a.mean(0) - b.mean(0))),
        detectable(arms),
        needed,
        needed_sentence(needed, difference.excludes_zero, min(len(a), len(b)), a.shape[1]),
    )


def _unfinished_seeds(unfinished: Mapping[str, Mapping[int, int]], compared: Collection[int]) -> list[str]:
    """Which seeds of A and B are unfinished, and that neither run's seed of that number is compared."""
    named = " and ".join(f"{spoken(seeds)} of {run}" for run, seeds in unfinished.items() if seeds)
    taken = any(seed in compared for seeds in unfinished.values() for seed in seeds)
    end = "a run has no others, so they are compared as far as they are" if taken else "left out of both runs"
    return [f"Unfinished: {named}; {end}."] if named else []


def _notes(everyone: Sequence[Scores], starts: list[int], steps: list[int], paired: bool, n_seeds: int) -> list[str]:
    """What is compared and paired, what is left out, and what intervals and tests are for."""
    notes = [
        f"{len(starts)} common starts; {len(steps)} common checkpoints ({steps[0]} to {steps[-1]}); "
        f"last {min(LAST, len(steps))} is the mean of the last {min(LAST, len(steps))}."
    ]
    dropped = sorted({step for scored in everyone for step in scored.steps} - set(steps))
    if dropped:
        notes.append(f"Left out, as not every seed has them: checkpoints {', '.join(map(str, dropped))}.")
    unshared = {start for scored in everyone for start in scored.starts} - set(starts)
    if unshared:
        notes.append(f"Left out, as only one run has them: {len(unshared)} starts.")
    if paired:
        notes.append("Paired by seed and start: both runs have the same training seeds.")
    else:
        notes.append("Paired by start only: the runs have different training seeds.")
    if n_seeds == 1:
        notes.append("A run has one training seed: the intervals say nothing about other training seeds.")
    elif paired and n_seeds < 6:
        notes.append(f"With {n_seeds} seeds the p of a sign test over seeds is at least {2.0 ** (1 - n_seeds):.3g}.")
    units = "(seed, start) pairs" if paired else "starts"
    wins = "A:B counts wins, the better scores, with a two-sided sign test"
    return [*notes, f"{wins}. Over {units} it is about these runs only."]


def _differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Settings of A against those of B: a part's options by dotted keys, paths from the current directory."""
    a, b = _dotted(a), _dotted(b)
    here = f"{Path.cwd()}/"
    keys = (key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key))
    differing = [f"{key} {a.get(key, 'none')} against {b.get(key, 'none')}".replace(here, "") for key in keys]
    return f"Settings that differ: {'; '.join(differing)}." if differing else "No setting differs."


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _sign(test: SignTest) -> str:
    return f"{test.wins}:{test.losses} p={test.p:.2g}"
