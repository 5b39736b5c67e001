"""How much closer each selector brings the noise to its sample: CIFAR-10, fields of a latent's size, actions.

Change of the mean Euclidean distance |x - noise| against plain noise, in percent, with 95% intervals over batches
(arXiv 2505.18521, Table 4; for assignment arXiv 2406.12303). Plain and selected noise are measured on the same
samples, so the floor is 0. KNN takes the nearest of k noises, assignment pairs a batch of B with its own B noises.

- *Closed form*: KNN's distance depends on |x| and D alone; the expected change is an integral over measured lengths.
- *Latents-sized fields* stand in for Stable Diffusion's latents (4 x 32 x 32): Gaussian fields of unit variance with
  the spectrum of natural images. KNN depends on their size and scale alone, assignment on the assumed spectrum too.
- The published percentages compare unsquared means, as the authors' released code does. The papers do not state the
  scale of the data: pixels in [-1, 1] have a root mean square near 0.5. The last table shows how much it matters.

  python -m immiscible_policy.lab distances images=cifar10-jpeg.zip
  python -m immiscible_policy.lab distances data=STORE batches=16
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import COUNT, Option
from immiscible_policy.lab import data as lab_data
from immiscible_policy.lab.laws import expected_change
from immiscible_policy.lab.program import Document, legend, log2, plain, program, require, table
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import distance_change
from immiscible_policy.palette import INK, NAMED, panels
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.tasks import find_task

KS, SIZES = (2, 4, 8, 64), (128, 256, 512, 1024)
KNN_BATCH = 512
CIFAR, LATENTS, ACTIONS = "CIFAR-10 pixels", "latents-sized fields", "action chunks"
CIFAR_UNIT = "CIFAR-10 pixels at unit scale"
PUBLISHED_CIFAR = {
    **{("knn", 4): -1.10, ("knn", 8): -1.58},
    **{("linear", size): change for size, change in zip(SIZES, (-1.93, -2.16, -2.32, -2.44), strict=True)},
}
PUBLISHED = {CIFAR: PUBLISHED_CIFAR, CIFAR_UNIT: PUBLISHED_CIFAR, LATENTS: {("knn", 64): -2.32}, ACTIONS: {}}
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # Root mean squares to which data are brought
MARKERS = "osD^"  # of the curves against the scale
SCALED = ((CIFAR, "knn", 4), (CIFAR, "knn", 8), (CIFAR, "linear", 128), (LATENTS, "knn", 64))
"""Selectors with a published figure, measured at every scale."""
COLUMNS = {
    "selector": "{label}",
    "measured [%]": "{change:+.2f}",
    "closed form": "{expected:+.2f}",
    "published": "{published:+.2f}",
}


def measure(options: Document) -> Findings:
    """Measure the change of distance on all data there are."""
    require(options, batches=(2, 1000))
    batches, seed, store, images = (options[key] for key in ("batches", "seed", "data", "images"))
    data = {
        LATENTS: lab_data.latent_fields(2048, torch_generator("cpu", "latents", seed)),
        ACTIONS: lab_data.demonstrated_actions(find_task(options["task"]), store),
    }
    if images is not None:
        pixels = lab_data.cifar_images(images, 4096)
        data = {CIFAR: pixels, CIFAR_UNIT: pixels / lab_data.root_mean_square(pixels), **data}
    rows = []
    for name, x in data.items():
        repeats = batches if x[0].numel() > 1000 else 8 * batches  # few numbers allow more batches
        rows += [change_of("knn", k, name, x, 2 * repeats, seed) for k in KS]
        rows += [change_of("linear", size, name, x, repeats, seed) for size in SIZES]
    scales = []
    for kind, name, size in SCALED:
        if kind in data:
            unit = data[kind] / lab_data.root_mean_square(data[kind])
            own = [change_of(name, size, kind, rms * unit, batches, seed) for rms in SCALES]
            label, best = f"{kind.split()[0]}, {own[0]['label']}", [row["best"] for row in own]
            scales.append({"label": label, "best": best, "published": own[0]["published"], "rows": own})
    figures = {
        "data": {name: {"dims": x[0].numel(), "rms": lab_data.root_mean_square(x)} for name, x in data.items()},
        "store": store.name if store else options["task"],
        "rows": rows,
        "scales": scales,
    }
    return Findings(figures, describe(figures), draw(figures))


def change_of(name: str, size: int, data: str, x: Tensor, batches: int, seed: int) -> Document:
    """Measure knn of `size` candidates, or the assignment of batches of that size, on samples x (N, ...) of some data.

    The `change` in percent as an interval, KNN's closed form (`expected`), the papers' figure (`published`), and the
    `best` of ours: the closed form where there is one.
    """
    select = make_selector("knn", k=size) if name == "knn" else make_selector(name)
    generator = torch_generator("cpu", f"distances {name}", seed, size)
    batch_size = KNN_BATCH if name == "knn" else size
    change = distance_change(select, x, batch_size=batch_size, batches=batches, generator=generator)
    expected = expected_change(x, size) if name == "knn" else None
    return {
        "data": data,
        "name": name,
        "size": size,
        "label": f"KNN k={size}" if name == "knn" else f"assignment B={size}",
        "rms": lab_data.root_mean_square(x),
        "change": {"mean": change.percent, "low": change.interval[0], "high": change.interval[1]},
        "expected": expected,
        "best": change.percent if expected is None else expected,
        "published": PUBLISHED[data].get((name, size)),
    }


def describe(figures: Document) -> str:
    """A table for each kind of data, and one over the scales."""
    parts = [] if CIFAR in figures["data"] else [f"CIFAR-10 was not measured: {lab_data.WITHOUT_CIFAR}."]
    for name, about in figures["data"].items():
        source = f" ({figures['store']})" if name == ACTIONS else ""
        parts.append(f"{name}{source}: D = {about['dims']:,}, root mean square {about['rms']:.2f}")
        parts.append(table(COLUMNS, [row for row in figures["rows"] if row["data"] == name]))
    by_scale = {"": "{label}", **{f"rms {rms:g}": f"{{best[{i}]:+.2f}}" for i, rms in enumerate(SCALES)}}
    parts.append("By the root mean square of the data; closed form for KNN, measured for assignment:")
    parts.append(table({**by_scale, "published": COLUMNS["published"]}, figures["scales"]))
    return "\n\n".join(parts)


def draw(figures: Document) -> Figure:
    """Change against the competing noises for each kind of data, and against the scale of the data."""
    names = list(figures["data"])
    figure, axes = panels(3, (len(names) + 3) // 3, title="change of the mean distance [%]; line of KNN: closed form")
    for panel, data in zip(axes, names, strict=False):
        plain(panel, data, "noises that compete: k or B")
        rows = [row for row in figures["rows"] if row["data"] == data]
        for name, label in (("knn", "KNN, k noises"), ("linear", "assignment, batch of B")):
            shown = [row for row in rows if row["name"] == name]
            sizes, values = [row["size"] for row in shown], np.array([row["change"]["mean"] for row in shown])
            error = np.abs([[row["change"][end] for row in shown] for end in ("low", "high")] - values)
            panel.errorbar(sizes, values, yerr=error, fmt="o", color=NAMED[name], markersize=4, label=label)
            panel.plot(sizes, [row["best"] for row in shown], color=NAMED[name], linewidth=1.2)
        known = {row["size"]: row["published"] for row in rows if row["published"] is not None}
        if known:
            panel.scatter(list(known), list(known.values()), marker="D", s=22, color=INK, zorder=3, label="published")
        log2(panel, [*KS, *SIZES])
        panel.set_ylim(top=0)
        legend(panel, "lower left")
    scaled, by_scale = axes[len(names)], figures["scales"]
    plain(scaled, "dependence on scale; dashed: published", "root mean square of the data")
    for row, marker in zip(by_scale, MARKERS, strict=False):
        colour = NAMED[row["rows"][0]["name"]]
        scaled.plot(SCALES, row["best"], color=colour, marker=marker, markersize=4, label=row["label"])
        scaled.axhline(row["published"], color=colour, linestyle="--", linewidth=1)
    legend(scaled)
    for unused in axes[len(names) + 1 :]:
        unused.set_axis_off()
    return figure


OPTIONS = {
    "images": lab_data.IMAGES,
    "task": lab_data.TASK,
    "data": lab_data.DATA,
    "batches": Option(COUNT, 8, "random batches per figure; KNN twice, actions 8 times as many"),
    "seed": lab_data.SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
