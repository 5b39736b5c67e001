"""What a set of runs says, as the report needs it: scores, comparisons, origin, audits, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.scores import Scores, common_steps, scores
from immiscible_policy.evaluation.statistics import Array, Interval, difference_arms, interval, mean_interval
from immiscible_policy.palette import COLOURS
from immiscible_policy.results.compare import Comparison, compare
from immiscible_policy.store.run import RunDirectory

AUDIT = "noise/"
MEASURES = ("majority", "total_variation", "coverage")
"""What `modality.json` holds of each checkpoint (`evaluation.modality.arms`)."""


@dataclass(frozen=True)
class Modes:
    """Which way round a run turned the T from symmetric starts, as `evaluation.modality` counted it.

    Attributes:
        names: The modes; the last is "undecided".
        steps: Checkpoints (C,).
        shares: Share of each mode among all rollouts of a checkpoint (C, modes).
        demonstrated: Number of demonstrations of each mode.
        measures: By measure, its mean, interval and chance floor at every checkpoint.
    """

    names: list[str]
    steps: list[int]
    shares: list[list[float]]
    demonstrated: list[int]
    measures: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Arm:
    """One run of the report.

    Attributes:
        name: The directory's name, with its parent's where that alone does not tell two runs apart.
        run: The run.
        scores: Scores of each training seed that has a complete checkpoint.
        gaps: What the run should hold and does not, in words.
        origin: Content of `provenance.json`; empty where there is none.
        audits: The last noise audit of each seed, by quantity; empty where none was recorded.
        modes: What `modality.json`, in the run or beside it, says of the run; None where there is none.
    """

    name: str
    run: RunDirectory
    scores: dict[int, Scores]
    gaps: list[str]
    origin: dict[str, Any]
    audits: dict[int, dict[str, float]]
    modes: Modes | None


@dataclass(frozen=True)
class Pairing:
    """A run against the reference.

    Attributes:
        arm: The run, A of the comparison.
        reference: The reference, B.
        comparison: What the two show, or None where they have no common ground.
        refusal: Why not, then.
    """

    arm: Arm
    reference: Arm
    comparison: Comparison | None
    refusal: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything a report is about.

    Attributes:
        arms: The runs, the reference first.
        pairings: Every other run against the reference.
    """

    arms: list[Arm]
    pairings: list[Pairing]

    @property
    def reference(self) -> Arm:
        """The run that the others are compared with."""
        return self.arms[0]


@dataclass(frozen=True)
class Curve:
    """One metric of a run against training steps.

    Attributes:
        steps: Checkpoints that all its seeds share (C,).
        means: Mean over seeds and starts with its interval, per checkpoint (C,).
        seeds: Mean over starts of each seed (S, C).
    """

    steps: list[int]
    means: list[Interval]
    seeds: Array


@dataclass(frozen=True)
class StartDifference:
    """A - B at one start, last10.

    Attributes:
        start: Seed of the start.
        a: Mean of A over its seeds.
        b: Mean of B over its seeds.
        difference: A - B; its interval is over training seeds, where there are several.
    """

    start: int
    a: float
    b: float
    difference: Interval


def gather(runs: Sequence[RunDirectory], reference: int = 0) -> Evidence:
    """Arrange runs for a report and compare each with the reference.

    Args:
        runs: The runs, 1 to 7 (as many as there are colours).
        reference: Index of the run that the others are compared with.

    Returns:
        The evidence; runs without common ground are kept, with the reason.

    Raises:
        ValueError: If there are too few or too many runs, one twice, or one without a complete checkpoint.
    """
    if not 1 <= len(runs) <= len(COLOURS):
        raise ValueError(f"{len(runs)} runs in one report; give 1 to {len(COLOURS)}")
    ordered = [runs[reference], *(run for index, run in enumerate(runs) if index != reference)]
    named = names([run.path for run in ordered])
    tables = [scores(run.episodes()) for run in ordered]
    for run, table in zip(ordered, tables, strict=True):
        if not table:
            raise ValueError(f"{run.path} has no complete checkpoint to report; evaluate it first")
    union = sorted(set().union(*tables))
    arms = [
        Arm(name, run, table, gaps(run, table, union), run.provenance, _audits(run), _modes(run.path))
        for name, run, table in zip(named, ordered, tables, strict=True)
    ]
    return Evidence(arms, [_pairing(arm, arms[0]) for arm in arms[1:]])


def names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many last parts as tell the paths apart.

    Raises:
        ValueError: If a path is given twice.
    """
    parts = [directory.resolve().parts for directory in directories]
    repeated = [path for path, count in Counter(parts).items() if count > 1]
    if repeated:
        raise ValueError(f"{Path(*repeated[0])} is given twice; name each run once")
    depth = next(n for n in range(1, 100) if len({each[-n:] for each in parts}) == len(parts))
    return ["/".join(each[-depth:]) for each in parts]


def gaps(run: RunDirectory, by_seed: Mapping[int, Scores], seeds_of_all: Sequence[int]) -> list[str]:
    """What a run lacks: seeds that it or others were to have, checkpoints and starts that its settings name.

    Args:
        run: The run.
        by_seed: Its complete scores.
        seeds_of_all: Training seeds of all runs in the report.

    Returns:
        One phrase per lack, to follow "lacks"; empty for a complete run.
    """
    missing = run.missing()
    elsewhere = sorted(set(seeds_of_all) - by_seed.keys() - set(missing.seeds))
    found = [f"{_numbers('seed', missing.seeds)} of its own plan"] if missing.seeds else []
    if elsewhere:
        found.append(f"{_numbers('seed', elsewhere)}, which other runs have")
    found += [f"{_numbers('checkpoint', steps)} of seed {seed}" for seed, steps in missing.steps.items()]
    return [*found, f"{len(missing.starts)} of its planned starts"] if missing.starts else found


def metric_names(arm: Arm) -> list[str]:
    """The metrics that the run's task summarises, the primary one first."""
    return [metric.name for metric in arm.run.metrics if metric.summarised]


def curve(arm: Arm, metric: str) -> Curve:
    """A metric of a run against training steps, with the interval of every point.

    Raises:
        ValueError: If the seeds share no checkpoint.
    """
    tables = arm.scores.values()
    steps = common_steps(arm.scores)
    if not steps:
        raise ValueError(f"the seeds of {arm.run.path} share no evaluated checkpoint; evaluate them at the same steps")
    values = np.stack([table.at(steps, table.starts).values[metric] for table in tables])  # (S, C, N)
    return Curve(steps, [mean_interval(values[:, index]) for index in range(len(steps))], values.mean(2))


def by_start(pairing: Pairing) -> list[StartDifference]:
    """Differences of coverage, last10, at every common start; empty where the two were not compared."""
    found = pairing.comparison
    if found is None:
        return []
    a, b = (
        np.stack([table.at(found.checkpoints, found.starts).last10("coverage") for table in arm.scores.values()])
        for arm in (pairing.arm, pairing.reference)
    )
    return [
        StartDifference(start, float(a[:, i].mean()), float(b[:, i].mean()), _at_start(a, b, i, found.paired))
        for i, start in enumerate(found.starts)
    ]


def _at_start(a: Array, b: Array, index: int, paired: bool) -> Interval:
    return interval(difference_arms(a[:, [index]], b[:, [index]], same_seeds=paired))


def _pairing(arm: Arm, reference: Arm) -> Pairing:
    try:
        return Pairing(arm, reference, compare(arm.run, reference.run))
    except ValueError as error:  # no common start or checkpoint: the reader is told, by name instead of by place
        places = {str(each.run.path): each.name for each in (arm, reference)}
        refusal = str(error)
        for place in sorted(places, key=len, reverse=True):
            refusal = refusal.replace(place, places[place])
        return Pairing(arm, reference, None, refusal)


def _numbers(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _modes(directory: Path) -> Modes | None:
    """The run's part of the `modality.json` in it, beside it, or in a directory `modality` beside it."""
    beside = directory.resolve().parent
    for place in (directory, beside, beside / "modality"):
        content = _json(place / "modality.json") or {"arms": []}
        for arm in content["arms"]:
            if arm["name"] == directory.resolve().name:
                measures = {name: arm[name] for name in MEASURES}
                return Modes(content["modes"], arm["steps"], arm["shares"], arm["demonstrated"], measures)
    return None


def _audits(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The last audit of each seed, from `metrics.jsonl`."""
    found = {}
    for seed in run.seeds():
        audited = [row for row in run.seed(seed).metrics() if any(key.startswith(AUDIT) for key in row)]
        if audited:
            last = audited[-1]
            found[seed] = {"step": last["step"]} | {
                key.removeprefix(AUDIT): value
                for key, value in last.items()
                if key.startswith(AUDIT) and value is not None
            }
    return found
