"""Measured runs as text, JSON, a picture and a page: distances over training, and runs against the first of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.image.evaluation.clip import RealScores
from immiscible_policy.image.evaluation.curves import (
    Against,
    Seeds,
    against,
    best,
    difference_over_seeds,
    make_curve,
    over_seeds,
)
from immiscible_policy.image.evaluation.evaluate import Evaluation, Target
from immiscible_policy.image.evaluation.measure import Reference
from immiscible_policy.image.evaluation.pictures import curves_figure, distance_figure
from immiscible_policy.image.evaluation.rows import ImageRow, settings
from immiscible_policy.palette import colours
from immiscible_policy.results.formatting import text
from immiscible_policy.results.plots import Curve
from immiscible_policy.results.report.charts import Chart
from immiscible_policy.results.report.page import fill
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import origin_here, png, write_result
from immiscible_policy.store.atomic import write_atomically


class TextTable(NamedTuple):
    """A table of text."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ImageResults:
    """What was measured, by run, the first one first; all of one setting but for the model's own sampling steps."""

    title: str  # what the distance is called
    rows: Mapping[str, Sequence[ImageRow]]
    reference: Reference
    origins: Mapping[str, dict[str, Any]]  # where the runs came from

    @property
    def setting(self) -> ImageRow:
        """What all rows have in common."""
        return next(iter(self.rows.values()))[0].setting

    @cached_property
    def seeds(self) -> dict[str, Seeds]:
        """Distances by run, training seed and checkpoint, seeds and checkpoints ascending."""
        by_run: dict[str, dict[int, dict[int, float]]] = {label: {} for label in self.rows}
        for label, rows in self.rows.items():
            for row in sorted(rows, key=lambda row: (row.seed, row.checkpoint)):
                by_run[label].setdefault(row.seed, {})[row.checkpoint] = row.distance
        return by_run  # type: ignore[return-value]

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Distances against training steps, by run."""
        return {label: make_curve(label, seeds) for label, seeds in self.seeds.items()}

    @cached_property
    def against(self) -> dict[str, Against]:
        """Every run but the first, against the first."""
        first, *others = self.seeds.items()
        return {label: against(first[1], seeds) for label, seeds in others}

    def clip_difference(self, label: str) -> Interval | None:
        """A run's CLIPScore - the first run's at the last checkpoint that all share; None where they have none."""
        comparison = self.against[label]
        own, first = (
            [row.clip_score for row in sorted(rows, key=lambda row: row.seed) if row.checkpoint == comparison.step]
            for rows in (self.rows[label], next(iter(self.rows.values())))
        )
        if None in own or None in first:
            return None
        return difference_over_seeds(np.array(own, np.float64), np.array(first, np.float64), comparison.paired)


def require_comparable(rows: Mapping[str, Sequence[ImageRow]]) -> None:
    """Refuse runs whose values mean different things; ValueError names the settings that differ."""
    (first, reference), *others = ((label, settings(of_run[0])) for label, of_run in rows.items())
    for label, own in others:
        differing = [f"{key} {own[key]} against {reference[key]}" for key in reference if own[key] != reference[key]]
        if differing:
            raise ValueError(f"{label} cannot be compared with {first}: {'; '.join(differing)}")


def measure_targets(evaluation: Evaluation, targets: Sequence[Target], what: str = "") -> ImageResults:
    """Measure what is not measured yet of targets, the others against the first; `what` follows the distance's name.

    Raises:
        ValueError: Before anything is measured if a target cannot be, and after it if the rows cannot be compared.
    """
    for target in targets:
        evaluation.check(target)
    rows = {target.label: evaluation.rows(target) for target in targets}
    require_comparable(rows)
    origins = {target.label: target.run.origin for target in targets if target.run is not None}
    title = evaluation.protocol.extractor.title + what
    return ImageResults(title, rows, evaluation.reference(targets[0].source), origins)


def write_report(
    out: Path,
    name: str,
    results: ImageResults,
    samples: Figure | None = None,
    calls: Mapping[str, Curve] | None = None,
    found: str = "",
) -> str:
    """Write NAME.json, NAME.md, NAME.png and NAME.html into a directory, and return the text.

    The page shows samples, and distances against network `calls`, where they are given; it begins with what was
    `found` of them.
    """
    written, origin = markdown(results), origin_here()
    reached = {label: comparison.reached for label, comparison in results.against.items()}
    figure = curves_figure(results.curves, reached, title=results.title, floor=results.reference.floor)
    write_result(out / name, as_json(results), written, figure, origin=origin)
    write_atomically(out / f"{name}.html", page(results, origin, samples, calls, found).encode())
    return written


def as_json(results: ImageResults) -> dict[str, Any]:
    """The results as JSON values."""
    measured = ("seed", "checkpoint", "distance", "clip_score")
    runs = {
        label: {
            "origin": results.origins.get(label, {}),
            "curve": [
                {"step": step, **asdict(mean)}
                for step, mean in zip(results.curves[label].steps, results.curves[label].means, strict=True)
            ],
            "rows": [{key: getattr(row, key) for key in measured} for row in rows],
        }
        for label, rows in results.rows.items()
    }
    reference = results.reference
    return {
        "distance": results.title,
        "settings": settings(results.setting),
        "reference": {"n": reference.n, "real_images": reference.floor, "plain_noise": reference.noise}
        | ({} if reference.clip is None else {"clip_score": reference.clip._asdict()}),
        "runs": runs,
        "against_first": {
            label: asdict(comparison)
            | {"reached": [asdict(seed) | {"ratio": seed.ratio} for seed in comparison.reached]}
            | ({} if (clip := results.clip_difference(label)) is None else {"clip_score": asdict(clip)})
            for label, comparison in results.against.items()
        },
    }


def markdown(results: ImageResults) -> str:
    """The results as Markdown."""
    lines = "\n".join(f"- {fact}" for fact in facts(results))
    parts = [f"# {results.title}", lines, *(table(shown.header, shown.rows) for shown in tables(results))]
    if results.against:
        shown, verdicts = against_table(results), "\n".join(f"- {line}" for line in sentences(results))
        parts += [f"## {shown.caption}", table(shown.header, shown.rows), verdicts]
    return "\n\n".join(parts) + "\n"


def page(
    results: ImageResults,
    origin: Mapping[str, Any],
    samples: Figure | None = None,
    calls: Mapping[str, Curve] | None = None,
    found: str = "",
) -> str:
    """The results as a page like that of the policies, with distances against network `calls` where they are given."""
    first, *others = results.rows
    colour = colours(results.rows)
    ends, said = _ends(results.curves), [found, *sentences(results)]
    legend = {label: (colour[label], "") for label in results.curves}
    chart = Chart(
        f"{results.title} (log scale)",
        distance_figure(results.curves, results.reference.floor),
        f"{results.title} at the last checkpoint: {ends}.",
        legend,
        "Thick: mean over seeds. Band: its 95% interval. Thin: each training seed. Dashed: real images. "
        f"Dotted: best mean of {first}.",
    )
    by_calls = calls and Chart(
        "The last checkpoint against network calls (log scale)",
        distance_figure(calls, results.reference.floor, across="network calls"),
        f"{results.title} with the most network calls: {_ends(calls)}.",
        legend,
    )
    return fill(
        "images.html",
        package="immiscible_policy.image.evaluation",
        title=f"{', '.join(others)} against {first}" if others else first,
        description=" ".join(filter(None, said)) or f"{results.title} at the last checkpoint: {ends}.",
        chart=chart,
        calls=by_calls,
        facts_of=facts(results),
        tables=tables(results),
        against=against_table(results) if others else None,
        origins=results.origins,
        origin=origin,
        samples=None if samples is None else png(samples),
    )


def _ends(curves: Mapping[str, Curve]) -> str:
    return "; ".join(f"{label}: {text(curve.means[-1])}" for label, curve in curves.items())


def facts(results: ImageResults) -> list[str]:
    """What was measured, and what distances mean."""
    at, ends = results.setting, results.reference
    what = "drawn again from the noise found" if at.edit == "invert" else "whose rest the model fills in"
    edit = "" if at.edit == "none" else f"; {at.edit}: images of {at.originals} {what}"
    floor = "unknown (too few reference images)" if ends.floor is None else f"{ends.floor:.3f}"
    named = [] if ends.clip is None else [_clip_fact(at.clip, ends.clip)]
    return [
        f"Squared Fréchet distance on the {at.dims} features of {at.features} (weights {at.weights}, {at.resize}).",
        f"{at.n:,} images per checkpoint, {at.sampling_steps} sampling steps, the same start noises for all "
        f"(noise_seed {at.noise_seed}){edit}.",
        f"Reference: {at.reference} {at.split}, {at.reference_n:,} images at {at.size}x{at.size} "
        f"(content {at.reference_hash}).",
        f"As many real images: {floor}. As many images of plain noise: {ends.noise:.3f}.",
        *named,
    ]


def _clip_fact(model: str, real: RealScores) -> str:
    return (
        f"CLIPScore by {model}. Real images have {real.own:.2f} with their own prompts, {real.others:.2f} with others'."
    )


def tables(results: ImageResults) -> list[TextTable]:
    """The last and the smallest distance of each run, and all of them by step."""
    rows: list[list[str]] = []
    for label, seeds in results.seeds.items():
        last = results.curves[label].steps[-1]
        smallest = over_seeds(np.array([best(distances)[0] for distances in seeds.values()]))
        clip = [row.clip_score for row in results.rows[label] if row.checkpoint == last and row.clip_score is not None]
        spoken = text(over_seeds(np.array(clip)), ".2f") if clip else "-"
        rows.append([label, str(len(seeds)), text(results.curves[label].means[-1]), text(smallest), spoken])
    columns = ["run", "seeds", "last checkpoint [95%]", "smallest per seed [95%]", "CLIPScore, last"]
    by_run = [dict(zip(curve.steps, curve.means, strict=True)) for curve in results.curves.values()]
    by_step: list[list[str]] = [
        [f"{step:,}", *(text(means.get(step)) or "-" for means in by_run)] for step in sorted(set().union(*by_run))
    ]
    heads = ["step", *(f"{label} [95%]" for label in results.curves)]
    return [TextTable(results.title, columns, rows), TextTable(f"{results.title} at each checkpoint", heads, by_step)]


def against_table(results: ImageResults) -> TextTable:
    """Differences from the first run, and how much sooner the best distance that both reach was reached."""
    rows: list[list[str]] = [
        [
            label,
            f"{text(run.difference, '+.3f')} at {run.step:,}",
            text(run.best, "+.3f"),
            ", ".join(f"{seed.first:,} / {seed.other:,}" for seed in run.reached),
            text(run.speedup, ".2f") or "-",
        ]
        for label, run in results.against.items()
    ]
    differences = ["difference, last [95%]", "difference, smallest [95%]"]
    columns = ["run", *differences, "steps to the best that both reach: first / run, per seed", "speed-up [95%]"]
    clip = [results.clip_difference(label) for label in results.against]
    if any(clip):
        columns.append("CLIPScore, difference, last [95%]")
        rows = [[*row, text(difference, "+.2f") or "-"] for row, difference in zip(rows, clip, strict=True)]
    return TextTable(f"Against {next(iter(results.rows))}", columns, rows)


def sentences(results: ImageResults) -> list[str]:
    """For every run but the first, how much sooner it was, and whether it got as good as the first one."""
    return [_sentence(label, next(iter(results.rows)), run) for label, run in results.against.items()]


def _sentence(label: str, first: str, run: Against) -> str:
    reached, speedup = run.reached, run.speedup
    if speedup is None:
        return f"{label} and {first} have no training seed in common: no steps of theirs can be paired."
    if len(reached) == 1:
        verdict = "one seed, so no interval and no conclusion"
    elif math.isnan(speedup.low):
        verdict = "the same in every seed, so no interval; more checkpoints tell more"
    elif speedup.low <= 1 <= speedup.high:
        verdict = "no difference detected, 1 is in the interval"
    else:
        verdict = f"{'sooner' if speedup.low > 1 else 'later'}, 1 is not in the interval"
    what = f"speed-up to the best distance that both reach (steps of {first} over its own, geometric mean over seeds)"
    whole = sum(seed.whole for seed in reached)
    end = f"It gets as good as {first} ever was in {whole} of {len(reached)} seeds."
    return f"{label}: {what} {text(speedup, '.2f')}; {verdict}. {end}"
