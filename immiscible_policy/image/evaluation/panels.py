"""A grid of image runs in panels: distances against training steps, and against network calls at the last checkpoint.

A panel holds runs that can be compared: one model at one data scale, the others against its first run. Everything is
measured once, into `frechet.csv` beside each seed, so that a grid that was cut short goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from immiscible_policy.evaluation.contrasts import holm
from immiscible_policy.evaluation.statistics import LEVEL, Interval
from immiscible_policy.image.evaluation.curves import Seeds, difference_over_seeds, make_curve
from immiscible_policy.image.evaluation.evaluate import Evaluation, ImageProtocol, find_run
from immiscible_policy.image.evaluation.pictures import draw_distances, mark_calls
from immiscible_policy.image.evaluation.report import (
    ImageResults,
    against_table,
    as_json,
    facts,
    measure_targets,
    sentences,
)
from immiscible_policy.palette import GREY, colours, readable
from immiscible_policy.palette import panels as empty_panels
from immiscible_policy.results.formatting import text
from immiscible_policy.results.plots import Curve
from immiscible_policy.results.table import table
from immiscible_policy.store.run import RunDirectory

SHOWN = 8
"""Images of each run that stand side by side, from the same start noises."""


class Panel(NamedTuple):
    """The measured runs of one comparison, the first one first."""

    title: str
    steps: ImageResults  # every checkpoint, with one number of network calls
    calls: Mapping[str, Seeds]  # distance at the last checkpoint by run, training seed and number of network calls
    samples: Mapping[str, Tensor]  # by run, images (SHOWN, 3, S, S) of the last checkpoint, uint8

    @property
    def curves(self) -> dict[str, Curve]:
        """Distances against network calls, by run."""
        return {label: make_curve(label, seeds) for label, seeds in self.calls.items()}

    def difference(self, label: str) -> dict[int, Interval]:
        """A run's distance - the first run's by number of network calls, paired where the seeds are the same."""
        paired = self._paired(label)
        return {
            count: difference_over_seeds(own, first, paired) for count, (own, first) in self._distances(label).items()
        }

    def p_values(self, label: str) -> dict[int, float]:
        """The p of the same differences, by t tests of the seeds' distances; NaN where there is one seed."""
        test = stats.ttest_rel if self._paired(label) else partial(stats.ttest_ind, equal_var=False)
        return {count: float(test(*pair).pvalue) if len(pair[0]) > 1 else math.nan
                for count, pair in self._distances(label).items()}  # fmt: skip

    def _paired(self, label: str) -> bool:
        return list(self.calls[label]) == list(next(iter(self.calls.values())))

    def _distances(self, label: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Distances of a run's seeds and of the first run's (S,), by number of network calls."""
        own, first = (self.curves[name] for name in (label, next(iter(self.calls))))
        return {
            count: (own.seeds[:, own.steps.index(count)], first.seeds[:, first.steps.index(count)])
            for count in own.steps
            if count in first.steps
        }


Comparison = tuple[str, str, int]
"""Title of a panel, a run in it, and a number of network calls."""


def corrected(panels: Sequence[Panel]) -> dict[Comparison, float]:
    """The p of every run's difference from the first of its panel, with each number of calls, corrected for all."""
    p = {
        (panel.title, label, count): value
        for panel in panels
        for label in list(panel.calls)[1:]
        for count, value in panel.p_values(label).items()
        if not math.isnan(value)
    }
    return holm(p)


def measure_panel(
    title: str,
    runs: Mapping[str, RunDirectory],
    protocol: ImageProtocol,
    calls: Sequence[int],
    report: Callable[[str], None],
) -> Panel:
    """Measure all checkpoints of some runs as the protocol says, and the last ones with each number of network calls.

    Raises:
        ValueError: If a run cannot be measured, or a model has no solver of so many calls.
    """
    every = Evaluation(protocol, report)
    targets = [find_run(label, run, protocol) for label, run in runs.items()]
    results = measure_targets(every, targets)
    by_calls: dict[str, dict[int, dict[int, float]]] = {target.label: {} for target in targets}
    for count in calls:
        evaluation = every.with_calls(count)
        for target in targets:
            last = {checkpoint.path.parent: checkpoint for checkpoint in target.checkpoints}
            for checkpoint in last.values():
                row = evaluation.row(target, checkpoint)
                by_calls[target.label].setdefault(row.seed, {})[count] = row.distance
    return Panel(title, results, by_calls, {target.label: every.first_images(target, SHOWN) for target in targets})


def record(panels: Sequence[Panel]) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    p = corrected(panels)
    return {
        panel.title: {
            "steps": as_json(panel.steps),
            "calls": {
                label: {
                    "seeds": seeds,
                    "means": dict(zip(panel.curves[label].steps, map(asdict, panel.curves[label].means), strict=True)),
                    "difference": {
                        count: asdict(value) | {"p_holm": p.get((panel.title, label, count))}
                        for count, value in panel.difference(label).items()
                    },
                }
                for label, seeds in panel.calls.items()
            },
        }
        for panel in panels
    }


def markdown(name: str, panels: Sequence[Panel], incomplete: Sequence[str] = ()) -> str:
    """The panels as Markdown; runs that are not finished are named first."""
    parts = [f"# {name}"]
    if incomplete:
        parts.append(f"**Not trained to the end, and left out: {', '.join(incomplete)}.**")
    for panel in panels:
        first = next(iter(panel.calls))
        parts += [f"## {panel.title}", "\n".join(f"- {fact}" for fact in facts(panel.steps))]
        if panel.steps.against:
            shown = against_table(panel.steps)
            parts += [table(shown.header, shown.rows), "\n".join(f"- {line}" for line in sentences(panel.steps))]
        counts = panel.curves[first].steps
        rows = [[label, *map(text, curve.means)] for label, curve in panel.curves.items()]
        for label in list(panel.calls)[1:]:
            rows.append([f"{label} - {first}", *(text(value, "+.3f") for value in panel.difference(label).values())])
        parts.append(table(["last checkpoint, network calls [95%]", *map(str, counts)], rows))
    return "\n\n".join([*parts, *verdict(corrected(panels))]) + "\n"


def remaining(p: Mapping[Comparison, float]) -> dict[tuple[str, str], list[int]]:
    """Numbers of network calls whose differences remain with Holm's correction, ascending, by panel and run."""
    found: dict[tuple[str, str], list[int]] = {}
    for (title, label, count), value in p.items():
        if value < 1 - LEVEL:
            found.setdefault((title, label), []).append(count)
    return {run: sorted(counts) for run, counts in found.items()}


def verdict(p: Mapping[Comparison, float]) -> list[str]:
    """Which of all differences remain with Holm's correction; nothing where there is none to test."""
    if not p:
        return []
    lines = [f"- {label}, network calls: {', '.join(map(str, counts))}" for (_, label), counts in remaining(p).items()]
    head = f"Differences that remain with Holm's correction for all {len(p)} comparisons with network calls:"
    return ["## All comparisons", head if lines else f"{head} none.", *(["\n".join(lines)] if lines else [])]


def spoken(panel: Panel, p: Mapping[Comparison, float]) -> str:
    """What the differences of a panel say, a sentence for each run; `p` are those of `corrected`, for all panels."""
    first, lines = next(iter(panel.calls)), []
    for label in list(panel.calls)[1:]:
        differences = panel.difference(label)
        signs: dict[str, list[str]] = {"better": [], "worse": []}
        for count in remaining(p).get((panel.title, label), []):
            signs["better" if differences[count].estimate < 0 else "worse"].append(str(count))
        found = [f"{word} with {', '.join(counts)} network calls" for word, counts in signs.items() if counts]
        lines.append(
            f"{label} is {' and '.join(found)} than {first}, with others no difference was detected."
            if found
            else f"Between {label} and {first} no difference was detected with any number of network calls."
        )
    return " ".join([*lines, f"Corrected for {len(p)} comparisons (Holm)."] if p else [])


def figure(panels: Sequence[Panel]) -> Figure:
    """A row for each panel: distances against training steps and network calls, and their differences from the first.

    A selector has its colour everywhere; what all runs of a panel share stands in its title alone.
    """
    drawn, axes = empty_panels(3, len(panels), width=4.2, height=3)
    for panel, left, middle, right in zip(panels, axes[::3], axes[1::3], axes[2::3], strict=True):
        names = dict(zip(panel.calls, distinct(list(panel.calls)), strict=True))
        by_steps, by_calls = (
            {names[label]: curve for label, curve in of.items()} for of in (panel.steps.curves, panel.curves)
        )
        draw_distances(left, by_steps, None)
        left.set_title(f"{panel.title}: squared distance to real images", fontsize=10, loc="left")
        left.legend(fontsize=8, frameon=False)
        draw_distances(middle, by_calls, None)
        middle.set_title("at the last checkpoint", fontsize=10, loc="left")
        colour, first = colours(names.values()), next(iter(names.values()))
        for number, label in enumerate(list(panel.calls)[1:]):
            found = panel.difference(label)
            at = [count * 1.04 ** (number - (len(names) - 2) / 2) for count in found]
            means, low, high = (
                np.array([getattr(value, end) for value in found.values()]) for end in ("estimate", "low", "high")
            )
            look: dict[str, Any] = {"color": colour[names[label]], "marker": "o", "markersize": 3.5, "capsize": 2}
            right.errorbar(at, means, [means - low, high - means], label=names[label], **look)
        right.axhline(0, color=GREY, linewidth=1)
        right.set_title(f"minus that of {first}, 95% intervals: below 0 is better", fontsize=10, loc="left")
        counts = next(iter(by_calls.values())).steps
        for axis in (middle, right):
            mark_calls(axis, counts)
    return drawn


def distinct(labels: Sequence[str]) -> list[str]:
    """Names of runs as pictures show them, without the words that all of them share."""
    words = [label.split("_") for label in labels]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [
        readable("_".join(word for word in own if word not in shared)) or label
        for own, label in zip(words, labels, strict=True)
    ]
