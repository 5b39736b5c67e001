"""The verdict in plain sentences; no difference is said as plainly as a win."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from immiscible_policy.evaluation.scores import LAST
from immiscible_policy.evaluation.statistics import SignTest, count
from immiscible_policy.results.compare import Comparison, Result
from immiscible_policy.results.formatting import brackets
from immiscible_policy.results.report.evidence import Evidence, RunContrast

BETTER, WORSE, OPEN, UNKNOWN = "better", "worse", "no difference detected", "cannot be decided"


def signed(value: float) -> str:
    """A difference: +0.012, or with a true minus sign."""
    return minus(f"{value:+.3f}")


def minus(text: str) -> str:
    """Numbers with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def title(evidence: Evidence) -> str:
    """What was compared."""
    first, *others = (run.name for run in evidence.runs)
    return f"{', '.join(others)} against {first}" if others else first


def headline(evidence: Evidence) -> str:
    """The verdict on all runs."""
    if not evidence.contrasts:
        run, metric = evidence.reference, evidence.metrics[0]
        mean = run.mean(metric)
        ends = brackets(mean, cut=(metric.low, metric.high)).strip("[]").replace(", ", " to ")
        ends = ends and f" (95% interval {ends})"
        return f"{run.name}: mean {evidence.task.measured} {mean.estimate:.3f}{ends}, {mean.meaning}."
    if len(evidence.contrasts) == 1:
        return verdict(evidence.contrasts[0], evidence.task.measured)
    phrases = {BETTER: "better", WORSE: "worse", OPEN: "with no difference detected", UNKNOWN: "undecided"}
    parts = ", ".join(
        f"{len(names)} {phrase} ({', '.join(names)})"
        for kind, phrase in phrases.items()
        if (names := [contrast.run.name for contrast in evidence.contrasts if outcome(contrast) == kind])
    )
    return (
        f"{len(evidence.contrasts)} runs against {evidence.reference.name}: {parts}. Mean {evidence.task.measured}, "
        "95% intervals, each comparison on its own."
    )


def outcome(contrast: RunContrast) -> str:
    """What a comparison says about A: one of the four words above."""
    result = contrast.comparison.headline if contrast.comparison else None
    if result is None or math.isnan(result.difference.low):
        return UNKNOWN
    if not result.difference.excludes_zero:
        return OPEN
    return BETTER if result.a_is_better else WORSE


def verdict(contrast: RunContrast, measured: str) -> str:
    """Which of two runs is better in what was measured ("coverage of the goal"), by how much, in one sentence."""
    a, b = contrast.run.name, contrast.reference.name
    if contrast.comparison is None:
        return f"{a} and {b} cannot be compared: {contrast.refusal}."
    result = contrast.comparison.headline
    difference = result.difference
    means = f"mean {measured} {result.a.estimate:.3f} against {result.b.estimate:.3f}"
    if math.isnan(difference.low):
        return f"Nothing can be concluded about {a} and {b}: {means}; {difference.meaning}."
    kind = outcome(contrast)
    opening = f"No difference detected between {a} and {b}" if kind == OPEN else f"{a} is {kind} than {b}"
    ends = f"{signed(difference.low)} to {signed(difference.high)}"
    return f"{opening}: {means}, difference {signed(difference.estimate)} (95% interval {ends}, {difference.meaning})."


def confidence(contrast: RunContrast) -> str:
    """How far a verdict can be trusted, beside its interval: agreement of the seeds, and what more would take."""
    if contrast.comparison is None or outcome(contrast) == UNKNOWN:
        return ""
    result, seeds = contrast.comparison.headline, ""
    if (test := result.over_seeds) is not None:
        n = test.wins + test.losses + test.ties
        smallest = f"; with {n} seeds p cannot be below {2.0 ** (1 - n):.2g}" if 1 < n < 6 else ""
        seeds = f" {contrast.run.name} is {won(test, 'seeds')}{smallest}."
    if result.difference.excludes_zero:
        return f"The interval excludes 0.{seeds}"
    return f"The interval contains 0: either run may be better.{seeds} {result.needed_words}"


def basis(comparison: Comparison) -> str:
    """How much a comparison rests on."""
    a, b = len(comparison.seeds_a), len(comparison.seeds_b)
    seeds = f"{count(a, 'training seed')} each" if a == b else f"{count(a, 'training seed')} against {b}"
    last = comparison.checkpoints[-LAST:]
    steps = f"steps {last[0]:,} to {last[-1]:,}" if len(last) > 1 else f"step {last[0]:,}"
    by = "seed and start" if comparison.paired else "start only"
    return (
        f"{seeds}, {count(len(comparison.starts), 'start')}, mean of the last "
        f"{count(len(last), 'common checkpoint')} ({steps}), paired by {by}"
    )


def won(test: SignTest, what: str) -> str:
    """A sign test in words: how often A is better."""
    ties = f", {test.ties} ties" if test.ties else ""
    return f"better in {test.wins} of {test.wins + test.losses + test.ties} {what}{ties} (sign test, {p_value(test.p)})"


def reach(results: Sequence[Result]) -> float:
    """The value at the right end of bars that show the intervals of these differences."""
    ends = [abs(end) for result in results for end in (result.difference.low, result.difference.high)]
    return 1.05 * max([1e-3, *(end for end in ends if not math.isnan(end))])


def p_value(p: float) -> str:
    """A p-value, no finer than it can be meant."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def setting(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key}={setting(item)}" for key, item in value.items() if key != "name")
        return " ".join(filter(None, (str(value.get("name", "")), rest and f"({rest})")))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(setting, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
