"""What a set of runs says, as the report needs it: scores, comparisons, audits, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from immiscible_policy.cli import one_line
from immiscible_policy.evaluation.scores import Scores, finished, scores, set_scores, stacked
from immiscible_policy.evaluation.statistics import Interval, difference_arms, interval, mean_interval
from immiscible_policy.palette import COLOURS, colours
from immiscible_policy.results.compare import Comparison, compare
from immiscible_policy.results.grid import last_audits
from immiscible_policy.results.plots import Curve, score_curve, selector_of
from immiscible_policy.store.reading import read_json
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric, SetMetric, Task, primary, summarised

COUNT_AGAIN = "count the modes again with eval_modality.py"


@dataclass(frozen=True)
class ReportedRun:
    """One run of the report.

    Attributes:
        name: The directory's name, with its parent's where that alone does not tell two runs apart.
        scores: Scores of each training seed that was evaluated to the end, or of all where none was.
        gaps: What the run should hold and does not, as phrases.
        audits: The last noise audit of each seed, by quantity; empty where none was recorded.
        modes: The run's part of a `modality.json` in it or beside it, and the `names` of the behaviours, of which the
            last stands for undecided rollouts; empty where nobody counted.
    """

    name: str
    run: RunDirectory
    scores: dict[int, Scores]
    gaps: list[str]
    audits: dict[int, dict[str, float]]
    modes: dict[str, Any]

    def mean(self, metric: Metric) -> Interval:
        """A metric, mean over the last checkpoints, with its interval."""
        values = np.stack([table.last10(metric.name) for table in self.scores.values()])
        return mean_interval(values, metric.is_proportion)

    def together(self, metric: SetMetric) -> Interval:
        """A number of all episodes of a checkpoint, mean over the last checkpoints, with its interval over seeds."""
        return mean_interval(stacked(set_scores(self.scores, [metric]), metric, "last10"))

    @property
    def audited(self) -> dict[str, Interval]:
        """What the audits measured, mean over seeds."""
        keys = dict.fromkeys(key for audit in self.audits.values() for key in audit if key != "step")
        values = {key: [audit[key] for audit in self.audits.values() if key in audit] for key in keys}
        return {key: mean_interval(np.array(of_key)[:, None]) for key, of_key in values.items()}

    @property
    def audited_steps(self) -> str:
        """The steps of the audits."""
        return " and ".join(sorted({f"{audit['step']:,}" for audit in self.audits.values()}))


@dataclass(frozen=True)
class RunContrast:
    """A run (A) against the reference (B); no comparison but a refusal where they have nothing in common."""

    run: ReportedRun
    reference: ReportedRun
    comparison: Comparison | None
    refusal: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything a report is about: runs of one task, the reference first, and the others against it."""

    task: Task
    runs: list[ReportedRun]
    contrasts: list[RunContrast]

    @property
    def reference(self) -> ReportedRun:
        """The run that the others are compared with."""
        return self.runs[0]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that the task summarises, the primary one first."""
        return summarised(self.task)

    @property
    def colours(self) -> dict[str, str]:
        """Colour of each run: that of its selector, where no run before it has the same."""
        selectors = {run.name: selector_of(run.run) for run in self.runs}
        return colours(selectors, selectors)

    def curves(self, metric: Metric) -> dict[str, Curve]:
        """A metric of every run against training steps."""
        return {run.name: score_curve(str(run.run.path), run.scores, metric) for run in self.runs}


class StartDifference(NamedTuple):
    """Means of A and B at one start, and A - B; the interval is over training seeds, where there are several."""

    start: int
    a: float
    b: float
    difference: Interval


def gather(runs: Mapping[str, RunDirectory], reference: str) -> Evidence:
    """Arrange runs, at most as many as there are colours, and compare each with the one called `reference`.

    Runs that have nothing in common with it are kept, with the reason.

    Raises:
        ValueError: If there are too few or too many runs, one without a complete checkpoint, or runs of
            different tasks.
    """
    if not 1 <= len(runs) <= len(COLOURS):
        raise ValueError(f"{len(runs)} runs in one report; give 1 to {len(COLOURS)}")
    ordered = {reference: runs[reference], **runs}
    tables = {name: finished(scores(run.episodes()), run.missing().unfinished) for name, run in ordered.items()}
    task = runs[reference].task
    for name, run in ordered.items():
        if not tables[name]:
            raise ValueError(f"{run.path} has no complete checkpoint to report; evaluate it first")
        if run.task.name != task.name:
            raise ValueError(f"{name} is of task {run.task.name}, {reference} of task {task.name}; report them apart")
    union = sorted(set().union(*tables.values()))
    reported = [
        ReportedRun(name, run, table, gaps(run, table, union), last_audits(run), _modes(run))
        for (name, run), table in zip(ordered.items(), tables.values(), strict=True)
    ]
    return Evidence(task, reported, [_contrast(run, reported[0]) for run in reported[1:]])


def gaps(run: RunDirectory, table: dict[int, Scores], seeds_of_all: Sequence[int]) -> list[str]:
    """Phrases to follow "lacks": seeds that it or others were to have, checkpoints and starts that its settings plan.

    `table` holds its complete scores, `seeds_of_all` the training seeds of all runs in the report.
    """
    missing = run.missing()
    lacks = [f"{_numbers('seed', missing.seeds)} of its own plan"] if missing.seeds else []
    elsewhere = sorted(set(seeds_of_all) - table.keys() - missing.unfinished.keys())
    if elsewhere:
        lacks.append(f"{_numbers('seed', elsewhere)}, which other runs have")
    lacks += [f"{_numbers('checkpoint', steps)} of seed {seed}" for seed, steps in missing.steps.items()]
    left_out = [seed for seed in missing.unfinished if seed not in {*table, *missing.seeds}]
    if left_out:
        lacks.append(f"the end of {_numbers('seed', left_out)}, left out of all means")
    return [*lacks, f"{len(missing.starts)} of its planned starts"] if missing.starts else lacks


def by_start(contrast: RunContrast, metric: str) -> list[StartDifference]:
    """Differences, mean over the last checkpoints, at every common start; empty where the two were not compared."""
    comparison = contrast.comparison
    if comparison is None:
        return []
    a, b = (
        np.stack([run.scores[seed].at(comparison.checkpoints, comparison.starts).last10(metric) for seed in seeds])
        for run, seeds in ((contrast.run, comparison.seeds_a), (contrast.reference, comparison.seeds_b))
    )
    return [
        StartDifference(start, float(a[:, i].mean()), float(b[:, i].mean()), interval(arms))
        for i, start in enumerate(comparison.starts)
        for arms in [difference_arms(a[:, [i]], b[:, [i]], same_seeds=comparison.paired)]
    ]


def differing_settings(runs: Sequence[ReportedRun]) -> list[str]:
    """Settings that are not the same in all runs."""
    settings = [run.run.settings for run in runs]
    keys = sorted(set().union(*settings))
    return [key for key in keys if any(of_run.get(key) != settings[0].get(key) for of_run in settings[1:])]


def _contrast(run: ReportedRun, reference: ReportedRun) -> RunContrast:
    try:
        return RunContrast(run, reference, compare(run.run, reference.run))
    except ValueError as error:  # no common start or checkpoint: the page says so, with names in place of paths
        refusal = str(error)
        for place, name in sorted(((str(own.run.path), own.name) for own in (run, reference)), reverse=True):
            refusal = refusal.replace(place, name)
        return RunContrast(run, reference, None, refusal)


def _modes(run: RunDirectory) -> dict[str, Any]:
    """The run's part of the `modality.json` in it, beside it, or in a directory `modality` beside it."""
    beside = run.path.resolve().parent
    for file in (place / "modality.json" for place in (run.path, beside, beside / "modality")):
        content = read_json(file, COUNT_AGAIN) if file.exists() else {"arms": []}
        try:
            for arm in content["arms"]:
                if arm["name"] == run.name and arm.get("origin", {}).get("began") == run.origin.get("began"):
                    _require_counted(arm, content["modes"], primary(run.task))
                    return arm | {"names": content["modes"], "demonstrated": tuple(arm["demonstrated"])}
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{file} is damaged ({one_line(error)}); {COUNT_AGAIN}") from None
    return {}


def _require_counted(arm: dict[str, Any], names: Sequence[str], metric: Metric) -> None:
    """Refuse an arm whose figures have other shapes or ranges than those that were counted, by a ValueError."""
    steps, shares, demonstrated = (np.array(arm[key], dtype=float) for key in ("steps", "shares", "demonstrated"))
    shapes = (len(steps), len(names)), (len(names),)
    if not isinstance(names, list) or (shares.shape, demonstrated.shape) != shapes or not len(steps):
        raise ValueError("steps, shares and modes do not fit together")
    if not (((shares >= 0) & (shares <= 1)).all() and (demonstrated >= 0).all() and demonstrated.any()):
        raise ValueError("shares lie between 0 and 1, and demonstrations are counted")
    for measure, low, high in (("majority", 0, 1), ("total_variation", 0, 1), (metric.name, metric.low, metric.high)):
        means = [estimate["mean"] for estimate in arm[measure]]
        if len(means) != len(steps) or not all(mean is None or low <= mean <= high for mean in means):
            raise ValueError(f"{measure} is not one number from {low} to {high} for each step")


def _numbers(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
