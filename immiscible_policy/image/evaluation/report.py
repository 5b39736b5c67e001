"""Measured runs as text, JSON and a picture: distances over training, and runs against the first of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.image.evaluation.curves import Against, Curve, Seeds, against, best, make_curve, over_seeds
from immiscible_policy.image.evaluation.measure import Reference
from immiscible_policy.image.evaluation.pictures import curves_figure
from immiscible_policy.image.evaluation.rows import ImageRow, settings
from immiscible_policy.provenance import provenance, without_places
from immiscible_policy.results.interval import text
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import finite, save_figure
from immiscible_policy.store.atomic import write_atomically


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        title: What the distance is called.
        rows: By run, the first one first; all of one setting but for sampling steps that are the model's own.
        reference: What distances mean.
        origins: By run, where it came from.
    """

    title: str
    rows: Mapping[str, Sequence[ImageRow]]
    reference: Reference
    origins: Mapping[str, dict[str, Any]]

    @property
    def setting(self) -> ImageRow:
        """What all rows have in common."""
        return next(iter(self.rows.values()))[0].setting

    @property
    def seeds(self) -> dict[str, Seeds]:
        """Distances by run, training seed and checkpoint."""
        return {label: by_seed(rows) for label, rows in self.rows.items()}

    @property
    def curves(self) -> dict[str, Curve]:
        """Curves by run."""
        return {label: make_curve(label, seeds) for label, seeds in self.seeds.items()}

    @property
    def against(self) -> dict[str, Against]:
        """Every run but the first, against the first."""
        first, *others = self.seeds.items()
        return {label: against(first[1], seeds) for label, seeds in others}


def by_seed(rows: Sequence[ImageRow]) -> dict[int, dict[int, float]]:
    """Distances by training seed and checkpoint, both rising."""
    ordered = sorted(rows, key=lambda row: (row.seed, row.checkpoint))
    found: dict[int, dict[int, float]] = {}
    for row in ordered:
        found.setdefault(row.seed, {})[row.checkpoint] = row.distance
    return found


def require_comparable(rows: Mapping[str, Sequence[ImageRow]]) -> None:
    """Refuse runs whose values mean different things.

    Raises:
        ValueError: If a setting differs.
    """
    (first, reference), *others = ((label, settings(of_run[0])) for label, of_run in rows.items())
    for label, found in others:
        differing = [
            f"{key} {found[key]} against {reference[key]}" for key in reference if found[key] != reference[key]
        ]
        if differing:
            raise ValueError(f"{label} cannot be compared with {first}: {'; '.join(differing)}")


def write_report(out: Path, name: str, report: Report) -> str:
    """Write NAME.json, NAME.md and NAME.png.

    Args:
        out: Directory, created if absent.
        name: Of the files.
        report: What was measured.

    Returns:
        The text.
    """
    text = markdown(report)
    write_atomically(out / f"{name}.json", (json.dumps(as_json(report), indent=2, allow_nan=False) + "\n").encode())
    write_atomically(out / f"{name}.md", text.encode())
    reached = {label: found.reached for label, found in report.against.items()}
    figure = curves_figure(report.curves, reached, title=report.title, floor=report.reference.floor)
    save_figure(figure, out / f"{name}.png")
    return text


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; what is unknown is null."""
    origin = provenance()
    runs = {
        label: {
            "origin": report.origins.get(label, {}),
            "curve": _curve(report.curves[label]),
            "rows": [_measured(row) for row in rows],
        }
        for label, rows in report.rows.items()
    }
    anchors = {"n": report.reference.n, "real_images": report.reference.floor, "plain_noise": report.reference.noise}
    return finite(
        {
            **origin,
            "command": without_places(origin["command"]),
            "distance": report.title,
            "settings": settings(report.setting),
            "reference": anchors,
            "runs": runs,
            "against_first": {label: _against(found) for label, found in report.against.items()},
        }
    )


def markdown(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"# {report.title}", "", *_facts(report), "", _summary_table(report), "", _steps_table(report)]
    if len(report.rows) > 1:
        first = next(iter(report.rows))
        lines += ["", f"## Against {first}", "", _against_table(report), ""]
        lines += [f"- {sentence(label, first, found)}" for label, found in report.against.items()]
    return "\n".join(lines) + "\n"


def sentence(label: str, first: str, found: Against) -> str:
    """When a run reached the first one's best distance, in words."""
    missed = [each for each in found.reached if each.reached is None]
    if not found.reached:
        return f"{label} and {first} have no training seed in common: no steps to {first}'s best can be paired."
    if missed:
        seeds = ", ".join(f"seed {each.seed} (target {each.target:.3f}, until step {each.last:,})" for each in missed)
        return f"{label}: not reached in {len(missed)} of {len(found.reached)} seeds, {seeds}; no mean is given."
    assert found.speedup is not None
    span = text(found.speedup, ".2f")
    verdict = _verdict(found.speedup)
    what = f"speed-up to the best of {first} (its steps over those of {label}, geometric mean over seeds)"
    return f"{label}: {what} {span}; {verdict}."


def _verdict(speedup: Interval) -> str:
    if math.isnan(speedup.low):
        return "one seed, so no interval and no conclusion"
    if speedup.low > 1:
        return "sooner, 1 is not in the interval"
    return "later, 1 is not in the interval" if speedup.high < 1 else "no difference is shown, 1 is in the interval"


def _facts(report: Report) -> list[str]:
    at, ends = report.setting, report.reference
    drawn = f"{at.n:,} images per checkpoint, {at.sampling_steps} sampling steps, the same start noises for all"
    edit = "" if at.edit == "none" else f"; {at.edit}: images of {at.originals} whose rest the model fills in"
    return [
        f"- Squared Fréchet distance on the {at.dims} features of {at.features} (weights {at.weights}, {at.resize}).",
        f"- {drawn} (noise_seed {at.noise_seed}){edit}.",
        f"- Reference: {at.reference} {at.split}, {at.reference_n:,} images at {at.size}x{at.size} "
        f"(content {at.reference_hash}).",
        f"- As many real images: {_number(ends.floor)}. As many images of plain noise: {_number(ends.noise)}.",
    ]


def _summary_table(report: Report) -> str:
    rows = []
    for label, seeds in report.seeds.items():
        curve = report.curves[label]
        smallest = over_seeds(np.array([best(distances)[0] for distances in seeds.values()]))
        cells = [label, str(len(seeds)), text(curve.intervals[-1]), text(smallest)]
        rows.append([*cells, _clip(report.rows[label], curve.steps[-1])])
    header = ["run", "seeds", "last checkpoint [95 %]", "smallest per seed [95 %]", "CLIPScore, last"]
    return table(header, rows)


def _steps_table(report: Report) -> str:
    curves = report.curves
    steps = sorted({step for curve in curves.values() for step in curve.steps})
    found = {label: dict(zip(curve.steps, curve.intervals, strict=True)) for label, curve in curves.items()}
    rows = [[f"{step:,}", *(text(of[step]) if step in of else "-" for of in found.values())] for step in steps]
    return table(["step", *(f"{label} [95 %]" for label in curves)], rows)


def _against_table(report: Report) -> str:
    rows = []
    for label, found in report.against.items():
        steps = ", ".join(
            f"{each.at:,} / {each.reached:,}" if each.reached else "not reached" for each in found.reached
        )
        speedup = "-" if found.speedup is None else text(found.speedup, ".2f")
        rows.append(
            [
                label,
                f"{text(found.difference, '+.3f')} at {found.step:,}",
                text(found.best, "+.3f"),
                steps,
                speedup,
            ]
        )
    header = [
        "run",
        "difference, last [95 %]",
        "difference, smallest [95 %]",
        "steps to its best: first / run, per seed",
    ]
    return table([*header, "speed-up [95 %]"], rows)


def _clip(rows: Sequence[ImageRow], step: int) -> str:
    scores = [row.clip_score for row in rows if row.checkpoint == step and row.clip_score is not None]
    return text(over_seeds(np.array(scores)), ".2f") if scores else "-"


def _number(value: float | None) -> str:
    return "unknown (too few reference images)" if value is None else f"{value:.3f}"


def _curve(curve: Curve) -> list[dict[str, Any]]:
    return [{"step": step, **asdict(found)} for step, found in zip(curve.steps, curve.intervals, strict=True)]


def _measured(row: ImageRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("seed", "checkpoint", "distance", "clip_score")}


def _against(found: Against) -> dict[str, Any]:
    return asdict(found) | {"reached": [asdict(each) | {"ratio": each.ratio} for each in found.reached]}
