"""The verdict in plain sentences, a null result as plainly as a win, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from immiscible_policy.evaluation.scores import LAST
from immiscible_policy.evaluation.statistics import Interval, SignTest, mean_interval
from immiscible_policy.results.compare import Comparison
from immiscible_policy.results.report.gather import Evidence, Pairing


def signed(value: float) -> str:
    """A difference: +0.012, or with a true minus sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def signed_span(found: Interval) -> str:
    """The interval of a difference; empty where there is none."""
    return "" if math.isnan(found.low) else f"[{signed(found.low)}, {signed(found.high)}]"


def share_span(found: Interval) -> str:
    """The interval of a share, cut to [0, 1]; empty where there is none."""
    return "" if math.isnan(found.low) else f"[{max(0.0, found.low):.3f}, {min(1.0, found.high):.3f}]"


def title(evidence: Evidence) -> str:
    """What was compared."""
    arms = [arm.name for arm in evidence.arms]
    return f"{', '.join(arms[1:])} against {arms[0]}" if len(arms) > 1 else arms[0]


def subject(evidence: Evidence) -> str:
    """What is measured, for someone who has never seen it."""
    seen = " and ".join(sorted({str(arm.run.config["obs"]) for arm in evidence.arms if "obs" in arm.run.config}))
    return (
        f"PushT{f' from {seen}' if seen else ''}. Coverage: the largest share of the goal that the T covers in an "
        "episode, 0 to 1."
    )


def headline(evidence: Evidence) -> str:
    """The verdict on all runs."""
    if not evidence.pairings:
        return _alone(evidence)
    if len(evidence.pairings) == 1:
        return verdict(evidence.pairings[0])
    told = ", ".join(
        f"{len(names)} {words} ({', '.join(names)})"
        for kind, words in {
            "better": "better",
            "worse": "worse",
            "no difference shown": "with no difference shown",
            "cannot be told": "of which nothing can be told",
        }.items()
        if (names := [pairing.arm.name for pairing in evidence.pairings if outcome(pairing) == kind])
    )
    return (
        f"Of {len(evidence.pairings)} runs against {evidence.reference.name}: {told}. Mean coverage of the goal, 95 % "
        "intervals, each comparison on its own."
    )


def outcome(pairing: Pairing) -> str:
    """What a comparison says about A: better, worse, no difference shown, or cannot be told."""
    found = pairing.comparison.headline.difference if pairing.comparison else None
    if found is None or math.isnan(found.low):
        return "cannot be told"
    if not found.excludes_zero:
        return "no difference shown"
    return "better" if found.estimate > 0 else "worse"


def verdict(pairing: Pairing) -> str:
    """Which of two runs is better, by how much, and with what interval, in one sentence."""
    a, b = pairing.arm.name, pairing.reference.name
    if pairing.comparison is None:
        return f"{a} against {b} tells nothing: {pairing.refusal}."
    result = pairing.comparison.headline
    found = result.difference
    means = f"mean coverage of the goal {result.a.estimate:.3f} against {result.b.estimate:.3f}"
    if math.isnan(found.low):
        return f"Nothing can be concluded about {a} and {b}: {means}, with {found.meaning}."
    opening = {
        "better": f"{a} is better than {b}",
        "worse": f"{a} is worse than {b}",
        "no difference shown": f"No difference is shown between {a} and {b}",
    }[outcome(pairing)]
    span = f"{signed(found.low)} to {signed(found.high)}"
    return f"{opening}: {means}, a difference of {signed(found.estimate)} (95 % interval {span}, {found.meaning})."


def certainty(pairing: Pairing) -> str:
    """How sure a verdict is, beside its interval: agreement of the seeds, and what more would take."""
    if pairing.comparison is None or outcome(pairing) == "cannot be told":
        return ""
    result = pairing.comparison.headline
    if result.difference.excludes_zero:
        return f"0 is not in the interval{_seeds_won(pairing)}."
    return f"0 is in the interval, so either may be better{_seeds_won(pairing)}. {result.needed_words}"


def measured(found: Comparison) -> str:
    """How much a comparison rests on."""
    seeds = f"{_count(len(found.seeds_a), 'training seed')} against {len(found.seeds_b)}"
    if len(found.seeds_a) == len(found.seeds_b):
        seeds = f"{_count(len(found.seeds_a), 'training seed')} of each"
    last = found.checkpoints[-LAST:]
    steps = f"steps {last[0]:,} to {last[-1]:,}" if len(last) > 1 else f"step {last[0]:,}"
    by = "seed and start" if found.paired else "start only"
    return (
        f"{seeds}, {_count(len(found.starts), 'start')}, mean of the last {_count(len(last), 'common checkpoint')} "
        f"({steps}), paired by {by}"
    )


def won(test: SignTest, what: str) -> str:
    """A sign test in words: how often A is higher."""
    ties = f", {test.ties} ties" if test.ties else ""
    return f"higher in {test.wins} of {test.wins + test.losses + test.ties} {what}{ties} (sign test, {p_value(test.p)})"


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


def _alone(evidence: Evidence) -> str:
    arm = evidence.reference
    found = mean_interval(np.stack([table.last10("coverage") for table in arm.scores.values()]))
    span = f" (95 % interval {share_span(found).strip('[]').replace(', ', ' to ')})" if share_span(found) else ""
    return f"{arm.name} covers {found.estimate:.3f} of the goal on average{span}, {found.meaning}."


def _seeds_won(pairing: Pairing) -> str:
    test = pairing.comparison.headline.over_seeds if pairing.comparison else None
    if test is None:
        return ""
    n = test.wins + test.losses + test.ties
    most = f"; {n} seeds cannot give less than {2.0 ** (1 - n):.2g}" if 1 < n < 6 else ""
    return f"; {pairing.arm.name} is {won(test, 'seeds')}{most}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
