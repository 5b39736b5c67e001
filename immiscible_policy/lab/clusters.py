"""The distance between the noises that a selector chooses for different images, and what chance alone gives.

For each of P CIFAR-10 images, n noises are selected and averaged. The table has the Euclidean distance between two
such averages, mean and standard deviation over all pairs of images (arXiv 2505.18521). Assignment needs a whole batch
for one noise of an image, so it gets fewer. With `runs=` the samples, images or action chunks, are those that each
model was trained on, as it diffuses them; the selector, and the number of samples that it chooses for together, are
those of its training. There is no picture then.

- *Floor*: sqrt(2 D / n), what independent plain noise gives with no effect at all: 0.78 for 10,000 noises of 3,072
  numbers, most of the published vanilla figure. None of the definitions tried gives its spread of 0.06.
- *Corrected*: root mean square distance between the true means: the squared distances - what averaging adds.
- *Closed form*: the same for KNN: the mean noise of an image x is E[z] x / |x|, an integral over the law of nearest.
- *At n = 10,000*: corrected and the floor of 10,000 noises added in squares, to stand beside the published figures.
- *Pixel rms*: root mean square of the pixels, near 0.5 for pixels in [-1, 1]. KNN depends on it and on k, assignment on
  the batch; the paper states none of them.

  python -m immiscible_policy.lab clusters images=cifar10-jpeg.zip
  python -m immiscible_policy.lab clusters images=cifar10-jpeg.zip n=2000 assigned=20
  python -m immiscible_policy.lab clusters runs=runs/flow_vanilla,runs/flow_knn   (runs of train_image.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import COUNT, CommandError, Option
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.data import IMAGES, SEED, cifar_images, latent_fields, root_mean_square
from immiscible_policy.lab.laws import nearest_over
from immiscible_policy.lab.program import Document, legend, log2, plain, program, require, table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.audit.statistics import cluster_distances
from immiscible_policy.palette import GREY, INK, NAMED, label_ends, panels, readable
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings

PUBLISHED = {"vanilla": (0.92, 0.06), "knn": (2.17, 0.35), "linear": (4.11, 0.37)}
PUBLISHED_N = 10_000
K, BATCHES = 8, (128, 1024)
KS = (2, 4, 8, 16, 32, 64)
MOST = 1024  # Images held in memory; the companions of the P images in a batch are drawn from them
COLUMNS = {
    "selector": "{name} {option}",
    "pixel rms": "{rms:.2f}",
    "n": "{n:,}",
    "mean ± std": "{distances[mean]:.2f} ± {distances[std]:.2f}",
    "floor": "{distances[floor]:.2f}",
    "corrected": "{distances[corrected]:.2f}",
    "closed form": "{expected:.2f}",
    "at n = 10,000": "{at_published_n:.2f}",
    "published": "{published[0]:.2f} ± {published[1]:.2f}",
}
OF_RUNS = ("selector", "pixel rms", "n", "mean ± std", "floor", "corrected", "at n = 10,000")


def measure(options: Document) -> Findings:
    """Measure the distances between noise clusters on CIFAR-10 at its own scale and at unit scale, or of runs."""
    require(options, pictures=(2, min(BATCHES)), n=(2, 100_000), assigned=(2, 100_000))
    count, n, assigned = (options[key] for key in ("pictures", "n", "assigned"))
    if options["runs"]:
        return measure_runs(lab_runs.newest_runs(options["runs"]), options)
    images = cifar_images(options["images"], MOST)
    own, dims = root_mean_square(images), images[0].numel()
    generator = torch_generator("cpu", "clusters", options["seed"])
    plain_noise = repeated_noise(make_selector("vanilla"), images[:count], n, generator)
    rows = [_row("vanilla", "", own, n, plain_noise, dims, 0.0)]
    for rms in (own, 1.0):
        scaled = images * (rms / own)
        noise = repeated_noise(make_selector("knn", k=K), scaled[:count], n, generator)
        rows.append(_row("knn", f"k={K}", rms, n, noise, dims, expected_distance(scaled[:count], K)))
        for size in BATCHES:
            batches = assigned * BATCHES[-1] // size  # a small batch is quickly assigned: more of them
            dealt = assigned_noise(make_selector("linear"), scaled, count, size, batches, generator)
            rows.append(_row("linear", f"B={size}", rms, batches, dealt, dims, None))
    scales = {f"CIFAR-10, rms {rms:.2f}": rms / own * images[:count] for rms in (0.25, own, 1.0, 2.0)}
    scales["latents-sized, rms 1.00"] = latent_fields(count, generator)
    by_k = {
        label: [raw_distance(expected_distance(pictures, k), pictures[0].numel()) for k in KS]
        for label, pictures in scales.items()
    }
    figures = {"pictures": count, "dims": dims, "rows": rows, "closed_form": {"k": KS, "curves": by_k}}
    return Findings(figures, describe(figures), draw(figures))


def measure_runs(runs: lab_runs.Runs, options: Document) -> Findings:
    """Measure the distances between clusters of the noise that models were trained with, the first seed of each run.

    CommandError for selectors that look at observations, more pictures than a batch has, and too few samples.
    """
    count, seed, rows = options["pictures"], options["seed"], []
    checkpoints = {run: next(iter(seeds.values())) for run, seeds in runs.policies.items()} | runs.models
    for run, checkpoint in checkpoints.items():
        select, size, needed = lab_runs.own_selector(checkpoint), lab_runs.chosen_together(checkpoint), count
        if isinstance(select, Assignment):
            needed = size
            if select.conditions is not None:
                raise CommandError(f"runs={run}: its noise depends on observations too; name runs without c2ot")
            if count >= size:
                raise CommandError(f"pictures={count}: runs={run} chose noise for {size} samples together; use fewer")
        x = lab_runs.clean_samples(checkpoint, options["data"], max(MOST, 2 * needed), seed)
        if len(x) < needed:
            raise CommandError(f"runs={run}: needs {needed:,} samples, the data have {len(x):,}; give data= with more")
        n, generator = options["n"], torch_generator("cpu", "clusters", seed)
        noise: Iterable[Tensor] = repeated_noise(select, x[:count], n, generator)
        if isinstance(select, Assignment):
            n = max(2, options["assigned"] * BATCHES[-1] // size)
            noise = assigned_noise(select, x, count, size, n, generator)
        rows.append(_row(run, "", root_mean_square(x), n, noise, x[0].numel(), None))
    figures = {"pictures": count, "dims": x[0].numel(), "rows": rows}
    return Findings(figures, describe(figures))


def _row(
    name: str, option: str, rms: float, n: int, noise: Iterable[Tensor], dims: int, expected: float | None
) -> Document:
    """What is measured of a selector's noise (P, n, ...), the closed form beside it."""
    distances = asdict(cluster_distances(noise))
    at_published_n = raw_distance(distances["corrected"], dims)
    return {"name": name, "option": option, "rms": rms, "n": n, "distances": distances, "expected": expected,
            "at_published_n": at_published_n, "published": PUBLISHED.get(name)}  # fmt: skip


def raw_distance(true: float, dims: int, n: int = PUBLISHED_N) -> float:
    """Root mean square distance of the averages of n noises each whose true means lie `true` apart."""
    return float(np.hypot(true, np.sqrt(2 * dims / n)))


def repeated_noise(select: Selector, pictures: Tensor, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Choose n noises for each picture, (P, ...) -> P times (n, ...); for selectors that look at one sample alone."""
    for picture in pictures:
        yield select(picture.expand(n, *picture.shape), generator=generator)


def assigned_noise(
    select: Selector, images: Tensor, count: int, size: int, n: int, generator: torch.Generator
) -> Tensor:
    """Choose n noises (P, n, ...) for the first P = count images, in n batches of a size with ever other companions."""
    chosen = []
    for _ in range(n):
        companions = count + torch.randperm(len(images) - count, generator=generator)[: size - count]
        batch = torch.cat([images[:count], images[companions]])
        chosen.append(select(batch, generator=generator)[:count])
    return torch.stack(chosen, dim=1)


def expected_distance(pictures: Tensor, k: int) -> float:
    """Root mean square distance of all pairs of true means E[z] x / ||x|| of KNN noise of pictures (P, ...)."""
    projection = torch.tensor([law.projection for law in nearest_over(pictures, k)])  # (P,)
    units = torch.nn.functional.normalize(pictures.flatten(1))
    return float(torch.nn.functional.pdist(projection[:, None] * units).square().mean().sqrt())


def describe(figures: Document) -> str:
    """The measured distances, and KNN's in closed form."""
    of_runs = "closed_form" not in figures
    columns = {head: COLUMNS[head] for head in OF_RUNS} if of_runs else COLUMNS
    shown = f"P = {figures['pictures']} samples, D = {figures['dims']:,}.\n\n{table(columns, figures['rows'])}"
    if of_runs:
        return shown
    by_k = [{"label": label, "values": values} for label, values in figures["closed_form"]["curves"].items()]
    columns = {"": "{label}", **{f"k={k}": f"{{values[{i}]:.2f}}" for i, k in enumerate(KS)}}
    return f"""\
{shown}

Distance at n = 10,000 for KNN, closed form:

{table(columns, by_k)}"""


def draw(figures: Document) -> Figure:
    """The corrected distances beside the published ones, and KNN's in closed form against k."""
    figure, (bars, lines) = panels(2, title="distance between the mean noises of two images")
    rows = figures["rows"]
    plain(bars, "bars: corrected for the floor", ylabel="Euclidean distance")
    at, corrected = np.arange(len(rows)), [row["distances"]["corrected"] for row in rows]
    bars.bar(at, corrected, color=[NAMED[row["name"]] for row in rows], width=0.6)
    with_floor = [row["at_published_n"] for row in rows]
    bars.scatter(at, with_floor, color=INK, s=18, marker="_", linewidth=2, zorder=3, label="with floor, n = 10,000")
    means, spreads = zip(*(row["published"] for row in rows), strict=True)
    bars.errorbar(at + 0.38, means, spreads, fmt="D", color=INK, markersize=3, capsize=2, label="published")
    bars.set_xticks(at, [f"{readable(row['name'])}\n{row['option']}\nrms {row['rms']:.2f}" for row in rows], fontsize=7)
    bars.set_ylim(0, 5.8)
    legend(bars, "upper left")
    plain(lines, "KNN in closed form, n = 10,000 noises each; band: published", "candidates k")
    middle, spread = PUBLISHED["knn"]
    lines.axhspan(middle - spread, middle + spread, color=GREY, alpha=0.15, linewidth=0)
    lines.axhline(raw_distance(0, figures["dims"]), color=GREY, linestyle="--", linewidth=1, label="floor")
    found = figures["closed_form"]["curves"]
    for values in found.values():
        lines.plot(KS, values, color=NAMED["knn"], marker="o", markersize=3.5)
    legend(lines, "upper left")
    log2(lines, KS)
    lines.set_ylim(0, 4.8)
    label_ends(lines, {label: (KS[-1], values[-1]) for label, values in found.items()}, dict.fromkeys(found, INK))
    return figure


OPTIONS = {
    "images": IMAGES,
    "runs": lab_runs.RUNS,
    "data": lab_runs.DATA,
    "n": Option(COUNT, PUBLISHED_N, "noises per image for vanilla and KNN"),
    "assigned": Option(COUNT, 60, f"noises per image for assignment at B = {BATCHES[-1]}; smaller batches get more"),
    "pictures": Option(COUNT, 10, "images whose noises are averaged, P"),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
