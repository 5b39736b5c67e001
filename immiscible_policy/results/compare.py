"""Compare two runs over the same starts: paired differences, what they can tell, and what they cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.scores import (
    LAST,
    Scores,
    Table,
    best_steps,
    common_steps,
    fresh_scores,
    scores,
    stacked,
)
from immiscible_policy.evaluation.statistics import (
    Array,
    Interval,
    Needed,
    SignTest,
    difference_arms,
    episodes_needed,
    interval,
    mean_interval,
    needed_sentence,
    percentile_interval,
    sign_test,
    two_level_bootstrap,
)
from immiscible_policy.results.interval import brackets, text
from immiscible_policy.results.plots import learning_curves, selector_of
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import finite, write_result
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import summarised


@dataclass(frozen=True)
class Result:
    """One score of A and B, and the difference.

    Attributes:
        metric: Name of a metric of the task.
        kind: One of `scores.KINDS`.
        a: Mean of A.
        b: Mean of B.
        difference: A - B.
        bootstrap: Percentile interval of the two-level bootstrap of A - B, for comparison.
        over_seeds: Sign test over training seeds; None where the runs' seeds differ.
        over_episodes: Sign test over (seed, start) pairs, or over starts where the seeds differ.
        needed: How large an experiment would exclude 0.
        needed_words: The same in words.
    """

    metric: str
    kind: str
    a: Interval
    b: Interval
    difference: Interval
    bootstrap: tuple[float, float]
    over_seeds: SignTest | None
    over_episodes: SignTest
    needed: Needed
    needed_words: str

    @property
    def name(self) -> str:
        """Metric and kind."""
        return f"{self.metric}, {self.kind}"

    @property
    def ratio(self) -> float:
        """Mean of A over mean of B; NaN where B is 0."""
        return self.a.estimate / self.b.estimate if self.b.estimate else math.nan


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        a: Directory of run A.
        b: Directory of run B.
        seeds_a: Training seeds of A.
        seeds_b: Training seeds of B.
        paired: Whether the seeds are the same, so that differences are paired by seed as well as by start.
        starts: Starts that both were evaluated on.
        checkpoints: Checkpoints that every seed of both was evaluated at.
        notes: What the reader has to know, in words.
        results: The scores, last10 before max before max_fresh within each metric, the primary metric first.
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
    """Compare two runs at the checkpoints and on the starts that they share.

    Args:
        a: Run A.
        b: Run B.

    Returns:
        The comparison, a function of the episodes alone.

    Raises:
        ValueError: If they are of different tasks, or share no start or no checkpoint.
    """
    if a.task.name != b.task.name:
        raise ValueError(f"{a.path} is of task={a.task.name} and {b.path} of task={b.task.name}; compare runs of one")
    whole_a, whole_b = scores(a.episodes()), scores(b.episodes())
    everyone = [*whole_a.values(), *whole_b.values()]
    starts = sorted(set.intersection(*(set(scored.starts) for scored in everyone)))
    steps = common_steps(whole_a, whole_b)
    if not starts:
        raise ValueError(f"{a.path} and {b.path} share no start; evaluate both on the same starts")
    if not steps:
        raise ValueError(f"{a.path} and {b.path} share no checkpoint; evaluate both at the same steps")
    of_a, of_b = ({seed: scored.at(steps, starts) for seed, scored in whole.items()} for whole in (whole_a, whole_b))
    paired = list(of_a) == list(of_b)
    results = [
        _result(metric.name, kind, values_a, values_b, paired)
        for metric in summarised(a.task)
        for kind, values_a, values_b in _readings(a, b, of_a, of_b, metric.name)
    ]
    notes = [
        *_common_ground(everyone, starts, steps),
        *_meaning(paired, min(len(of_a), len(of_b))),
        _differing_settings(a.settings, b.settings),
        f"The result is {results[0].name}: the other rows read the same episodes again, and max picks its "
        "checkpoint on them.",
    ]
    return Comparison(str(a.path), str(b.path), list(of_a), list(of_b), paired, starts, steps, notes, results)


def verdict(result: Result) -> str:
    """What one result says, in one or two plain sentences; a null result as plainly as a win."""
    difference = result.difference
    stated = f"A - B = {difference.estimate:+.4f}"
    if math.isnan(difference.low):
        return f"{result.name}: {stated}; {difference.meaning}, so nothing can be concluded."
    span = f"{stated}, 95 % interval {brackets(difference, '+.4f')} {difference.meaning}"
    if not difference.excludes_zero:
        half = (difference.high - difference.low) / 2
        return f"{result.name}: no difference detected ({half:.3f} could have been). {span}; 0 is in it."
    better, worse = "AB" if difference.estimate > 0 else "BA"
    return f"{result.name}: {better} is better than {worse}. {span}; 0 is not in it."


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    notes, verdicts = ("\n".join(f"- {line}" for line in lines) for lines in
                       (comparison.notes, map(verdict, comparison.results)))  # fmt: skip
    return f"""\
# {_name(comparison.a)} (A) against {_name(comparison.b)} (B)

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


def write_comparison(out: Path, comparison: Comparison, a: RunDirectory, b: RunDirectory) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.png`.

    Args:
        out: Directory, created if absent.
        comparison: The comparison of a and b.
        a: Run A.
        b: Run B.
    """
    runs = {f"A {_name(comparison.a)}": a, f"B {_name(comparison.b)}": b}
    shown = summarised(a.task)[:2]
    names = {metric.name for metric in shown}
    picture = learning_curves(
        {label: scores(run.episodes()) for label, run in runs.items()},
        shown,
        differences={result.name: result.difference for result in comparison.results if result.metric in names},
        selectors={label: selector_of(run) for label, run in runs.items()},
    )
    write_result(out / "comparison", content(comparison), markdown(comparison), picture)


def columns(comparison: Comparison) -> list[str]:
    """Header of a table of results."""
    units = "pairs" if comparison.paired else "starts"
    return ["", "A", "B", "A - B [95 %]", "A / B", "A:B by seeds", f"A:B by {units}", "needed starts, seeds"]


def cells(result: Result) -> list[str]:
    """Row of a table of results."""
    needed = (result.needed.starts, result.needed.seeds)
    return [
        result.name,
        f"{result.a.estimate:.3f}",
        f"{result.b.estimate:.3f}",
        text(result.difference, "+.3f"),
        "-" if math.isnan(result.ratio) else f"{result.ratio:.3f}",
        "-" if result.over_seeds is None else _sign(result.over_seeds),
        _sign(result.over_episodes),
        "enough" if result.difference.excludes_zero else ", ".join(map(_size, needed)),
    ]


def _readings(
    a: RunDirectory, b: RunDirectory, of_a: Table, of_b: Table, metric: str
) -> list[tuple[str, Array, Array]]:
    """Scores (seeds, starts) of A and of B, by kind."""
    readings = [(kind, stacked(of_a, metric, kind), stacked(of_b, metric, kind)) for kind in ("last10", "max")]
    fresh_a, fresh_b = (fresh_scores(run, best_steps(of, metric), metric) for run, of in ((a, of_a), (b, of_b)))
    common = sorted(fresh_a.keys() & fresh_b.keys())
    if common:
        of_fresh = [np.stack([fresh[start] for start in common], axis=1) for fresh in (fresh_a, fresh_b)]
        readings.append(("max_fresh", of_fresh[0], of_fresh[1]))
    return readings


def _result(metric: str, kind: str, a: Array, b: Array, paired: bool) -> Result:
    arms = difference_arms(a, b, same_seeds=paired)
    difference, needed = interval(arms), episodes_needed(arms)
    samples = two_level_bootstrap(arms, np.random.default_rng(0))
    return Result(
        metric,
        kind,
        mean_interval(a),
        mean_interval(b),
        difference,
        percentile_interval(samples),
        sign_test(arms[0].mean(1)) if paired else None,
        sign_test(arms[0] if paired else a.mean(0) - b.mean(0)),
        needed,
        needed_sentence(needed, difference.excludes_zero, min(len(a), len(b)), a.shape[1]),
    )


def _common_ground(everyone: Sequence[Scores], starts: Sequence[int], steps: Sequence[int]) -> list[str]:
    """What is compared, and what is left out."""
    notes = [
        f"{len(starts)} common starts; {len(steps)} common checkpoints ({steps[0]} to {steps[-1]}), of which "
        f"last10 takes the last {min(LAST, len(steps))}."
    ]
    dropped = sorted({step for scored in everyone for step in scored.steps} - set(steps))
    if dropped:
        notes.append(f"Left out, as not every seed has them: checkpoints {', '.join(map(str, dropped))}.")
    unshared = {start for scored in everyone for start in scored.starts} - set(starts)
    if unshared:
        notes.append(f"Left out, as only one run has them: {len(unshared)} starts.")
    return notes


def _meaning(paired: bool, n_seeds: int) -> list[str]:
    """What is paired, and what intervals and tests speak about."""
    notes = [
        "Paired by seed and start: both runs have the same training seeds."
        if paired
        else "Paired by start only: the runs have different training seeds."
    ]
    if n_seeds == 1:
        notes.append("A run has one training seed: the intervals say nothing about other training seeds.")
    elif paired and n_seeds < 6:
        notes.append(f"{n_seeds} seeds cannot give a sign test over seeds below p = {2.0 ** (1 - n_seeds):.3g}.")
    units = "(seed, start) pairs" if paired else "starts"
    return [*notes, f"A:B counts wins, with a two-sided sign test. Over {units} it speaks of these runs alone."]


def _differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Settings of A against those of B; a part's options by dotted keys."""
    a, b = _dotted(a), _dotted(b)
    differing = [
        f"{key} {a.get(key, 'none')} against {b.get(key, 'none')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
    return f"Settings that differ: {'; '.join(differing)}." if differing else "No setting differs."


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _sign(test: SignTest) -> str:
    return f"{test.wins}:{test.losses} p={test.p:.2g}"


def _size(number: float) -> str:
    return "unknown" if math.isnan(number) else "never" if math.isinf(number) else f"{number:,.0f}"


def _name(directory: str) -> str:
    return Path(directory).resolve().name
