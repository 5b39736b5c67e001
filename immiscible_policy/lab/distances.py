"""How much nearer to its sample the selected noise lies: the distances of samples and noises, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.lab.data import (
    DATA,
    IMAGES,
    SEED,
    WITHOUT_CIFAR,
    cifar_images,
    latent_fields,
    pusht_actions,
    root_mean_square,
)
from immiscible_policy.lab.laws import expected_change
from immiscible_policy.lab.report import panels, table
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import DistanceChange, distance_change
from immiscible_policy.palette import COLOURS
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab distances [KEY=VALUE ...]

How much nearer to its sample each selector brings the noise, on CIFAR-10, latents-sized fields and PushT actions.

The figure is the change of the mean Euclidean distance ||x - noise|| against plain noise (Improved Immiscible
Diffusion, arXiv 2505.18521, Table 4; the assignment figures of arXiv 2406.12303). For KNN the closed form stands
beside the measured value. Without images= the CIFAR-10 part is left out.

  python -m immiscible_policy.lab distances images=cifar10-jpeg.zip
  python -m immiscible_policy.lab distances data=pusht_cchi_v7_replay.zarr batches=16
"""
KS, SIZES = (2, 4, 8, 64), (128, 256, 512, 1024)
KNN_BATCH = 512
CIFAR, LATENTS, PUSHT = "CIFAR-10 pixels", "latents-sized fields", "PushT actions"
CIFAR_UNIT = "CIFAR-10 pixels at unit scale"
PUBLISHED_CIFAR = {
    **{("knn", 4): -1.10, ("knn", 8): -1.58},
    **{("linear", size): change for size, change in zip(SIZES, (-1.93, -2.16, -2.32, -2.44), strict=True)},
}
PUBLISHED = {CIFAR: PUBLISHED_CIFAR, CIFAR_UNIT: PUBLISHED_CIFAR, LATENTS: {("knn", 64): -2.32}, PUSHT: {}}
TITLE = "change of the mean distance of sample and noise [%]; line of KNN: closed form"
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Root mean squares to which data are brought to see how the figures depend on it."""


class Row(NamedTuple):
    """One selector on one kind of data.

    Attributes:
        data: Name of the data.
        name: Name of the selector.
        size: Noises that compete for a sample: k for KNN, the batch for assignment.
        rms: Root mean square of the data.
        change: The measured change.
        expected: The same in closed form [%], for KNN.
    """

    data: str
    name: str
    size: int
    rms: float
    change: DistanceChange
    expected: float | None

    @property
    def published(self) -> float | None:
        """The papers' figure [%]."""
        return PUBLISHED[self.data].get((self.name, self.size))

    @property
    def best(self) -> float:
        """The closed form [%] where there is one, else the measured change."""
        return self.change.percent if self.expected is None else self.expected


def measure(options: dict[str, Any]) -> Findings:
    """Measure the change of distance on all data there are."""
    batches, seed, store = options["batches"], options["seed"], options["data"]
    if not 2 <= batches <= 1000:
        raise CommandError(f"batches={batches}: choose 2 to 1,000")
    data = _data(options["images"], store, seed)
    rows = [row for name, x in data.items() for row in _rows(name, x, batches, seed)]
    scales = _scales(data, batches, seed)
    known = {name: {"dims": x[0].numel(), "rms": root_mean_square(x)} for name, x in data.items()}
    source = store.name if store else "embedded"
    figures = {
        "definition": "percent change of the mean Euclidean distance of sample and noise against plain noise",
        "data": known,
        "pusht": source,
        "rows": [{**row._asdict(), "change": asdict(row.change), "published": row.published} for row in rows],
        "scales": [{**row._asdict(), "change": asdict(row.change), "published": row.published} for row in scales],
    }
    return Findings(figures, _text(rows, scales, known, source), _picture(rows, scales))


def _data(images: Path | None, store: Path | None, seed: int) -> dict[str, Tensor]:
    latents = latent_fields(2048, torch_generator("cpu", "latents", seed))
    found = {LATENTS: latents, PUSHT: pusht_actions(store)}
    if images is None:
        return found
    pixels = cifar_images(images, 4096)
    return {CIFAR: pixels, CIFAR_UNIT: pixels / root_mean_square(pixels), **found}


def _rows(name: str, x: Tensor, batches: int, seed: int) -> Iterator[Row]:
    """Every selector on one kind of data; the few numbers of PushT allow many more batches."""
    repeats = batches if x[0].numel() > 1000 else 8 * batches
    for k in KS:
        yield change_of("knn", k, name, x, 2 * repeats, seed)
    for size in SIZES:
        yield change_of("linear", size, name, x, repeats, seed)


def change_of(name: str, size: int, data: str, x: Tensor, batches: int, seed: int) -> Row:
    """Measure one selector.

    Args:
        name: knn or linear.
        size: k for KNN, the batch for assignment.
        data: Name of the data.
        x: Samples (N, ...).
        batches: Random batches to measure, 2 or more.
        seed: Seed of batches and noise.
    """
    select = make_selector("knn", k=size) if name == "knn" else make_selector(name)
    generator = torch_generator("cpu", f"distances {name}", seed, size)
    batch_size = KNN_BATCH if name == "knn" else size
    change = distance_change(select, x, batch_size=batch_size, batches=batches, generator=generator)
    expected = expected_change(x, size) if name == "knn" else None
    return Row(data, name, size, root_mean_square(x), change, expected)


def _scales(data: dict[str, Tensor], batches: int, seed: int) -> list[Row]:
    """Selectors with a published figure, on data brought to other scales."""
    shown = [(CIFAR, "knn", 4), (CIFAR, "knn", 8), (CIFAR, "linear", 128), (LATENTS, "knn", 64)]
    return [
        change_of(name, size, label, rms / root_mean_square(data[label]) * data[label], batches, seed)
        for label, name, size in shown
        if label in data
        for rms in SCALES
    ]


def _text(rows: list[Row], scales: list[Row], known: dict[str, dict[str, float]], store: str) -> str:
    parts = [
        f"""\
## Distance between samples and their noise

Change of the mean Euclidean distance |x - noise| against plain noise, in percent, with 95 % intervals over batches;
plain and selected noise are measured on the same samples. KNN takes the nearest of k noises, sample by sample;
assignment pairs a batch of B with its own B noises at the least total distance.

- The floor is 0: a selector that does nothing changes nothing, and the interval is the noise about it.
- *Closed form*: for KNN the law of the distance depends on |x| and D alone (noncentral chi-squared), so the expected
  change is an integral over the measured lengths.
- {LATENTS.capitalize()} are a stand-in for Stable Diffusion's latents (4 x 32 x 32): Gaussian fields of unit variance
  with the power spectrum of natural images. For KNN their size and scale are all that counts; for assignment the
  spectrum is an assumption.
- That the published percentages compare mean distances, unsquared, is what the authors' released code prints. The
  scale of the data is not stated; how much it matters is in the last table.
"""
    ]
    if CIFAR not in known:
        parts.append(f"CIFAR-10 was not measured: {WITHOUT_CIFAR}.\n")
    for name, about in known.items():
        found = [_cells(row) for row in rows if row.data == name]
        source = f" ({store})" if name == PUSHT else ""
        parts.append(f"{name}{source}: D = {about['dims']:,}, root mean square {about['rms']:.2f}\n")
        parts.append(f"{table(['selector', 'measured', '95 % interval', 'closed form', 'published'], found)}\n")
    return "\n".join([*parts, _scale_text(scales), _comparison(rows)])


def _cells(row: Row) -> list[str]:
    low, high = row.change.interval
    optional = ["" if value is None else f"{value:+.2f}" for value in (row.expected, row.published)]
    label = f"knn k={row.size}" if row.name == "knn" else f"{row.name} B={row.size}"
    return [label, f"{row.change.percent:+.2f}", f"{low:+.2f} to {high:+.2f}", *optional]


def _scale_text(scales: list[Row]) -> str:
    rows = [
        [label, *(f"{row.best:+.2f}" for row in shown), f"{shown[0].published:+.2f}"]
        for label, shown in _curves(scales).items()
    ]
    return f"""\
Dependence on the scale of the data (root mean square, the noise's being 1); closed form for KNN, measured for
assignment:

{table(["", *(f"rms {rms}" for rms in SCALES), "published"], rows)}
"""


def _curves(scales: list[Row]) -> dict[str, list[Row]]:
    """The rows of each selector over all scales, by a label for it."""
    curves: dict[str, list[Row]] = {}
    for row in scales:
        option = f"KNN k={row.size}" if row.name == "knn" else f"assignment B={row.size}"
        curves.setdefault(f"{row.data.split()[0]}, {option}", []).append(row)
    return curves


def _comparison(rows: list[Row]) -> str:
    gaps: dict[str, list[float]] = {}
    for row in rows:
        if row.published is not None:
            gaps.setdefault(row.data, []).append(abs(row.best - row.published))
    lines = [f"- {name}: {len(gap)} published, largest difference {max(gap):.2f} points" for name, gap in gaps.items()]
    return f"""\
**Beside the published figures.** The papers do not say how the data were scaled; pixels in [-1, 1] have a root mean
square near 0.5. For KNN length, D and k decide, so a difference from the closed form is one of scale:

{chr(10).join(lines)}
"""


def _picture(rows: list[Row], scales: list[Row]) -> Figure:
    names = list(dict.fromkeys(row.data for row in rows))
    figure, axes = panels(3, (len(names) + 3) // 3, title=TITLE)
    for each, name in zip(axes, names, strict=False):
        _draw_sizes(each, [row for row in rows if row.data == name])
        each.set_title(name, fontsize=10, loc="left")
    _draw_scales(axes[len(names)], scales)
    for each in axes[len(names) + 1 :]:
        each.set_axis_off()
    return figure


def _draw_sizes(axes: Axes, rows: list[Row]) -> None:
    """Change against the number of competing noises."""
    for name, colour in (("knn", COLOURS[0]), ("linear", COLOURS[1])):
        shown = [row for row in rows if row.name == name]
        label = "KNN, k noises" if name == "knn" else "assignment, batch of B"
        values = [row.change.percent for row in shown]
        error = np.abs(np.array([row.change.interval for row in shown]) - np.array(values)[:, None]).T
        axes.errorbar([row.size for row in shown], values, yerr=error, fmt="o", color=colour, markersize=4, label=label)
        axes.plot([row.size for row in shown], [row.best for row in shown], color=colour, linewidth=1.2)
    known = {row.size: row.published for row in rows if row.published is not None}
    if known:
        axes.scatter(list(known), list(known.values()), marker="D", s=22, color=COLOURS[2], zorder=3, label="published")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*KS, *SIZES], [str(size) for size in (*KS, *SIZES)])
    axes.minorticks_off()
    axes.set_ylim(top=0)
    axes.set_xlabel("noises that compete: k or B", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left")


def _draw_scales(axes: Axes, scales: list[Row]) -> None:
    """Change against the scale of the data; a dashed line is the published figure of the same colour."""
    for colour, (label, shown) in zip(COLOURS, _curves(scales).items(), strict=False):
        values = [row.best for row in shown]
        axes.plot([row.rms for row in shown], values, color=colour, marker="o", markersize=3, label=label)
        axes.axhline(PUBLISHED[shown[0].data][shown[0].name, shown[0].size], color=colour, linestyle="--", linewidth=1)
    axes.set_ylim(top=0)
    axes.set_xlabel("root mean square of the data", fontsize=9)
    axes.set_title("dependence on scale; dashed: published", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.97))


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "data": DATA,
        "batches": Option(int, 8, "random batches per figure; KNN twice, PushT 8 times as many"),
        "seed": SEED,
    },
)
