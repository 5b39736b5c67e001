"""How far apart the noises lie that a selector chooses for different images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.lab.data import IMAGES, SEED, cifar_images, latent_fields, root_mean_square
from immiscible_policy.lab.laws import nearest_over
from immiscible_policy.lab.report import panels, table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.noise.audit.statistics import ClusterDistances, cluster_distances
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab clusters [KEY=VALUE ...]

How far apart the noises lie that a selector chooses for different images, with the floor that chance alone gives.

For each of P images, n noises are selected and averaged; the figure is the distance between these averages over all
pairs of images (Improved Immiscible Diffusion, arXiv 2505.18521). Assignment needs a whole batch of images for one
noise each, so it gets fewer noises; its corrected figure allows for that.

  python -m immiscible_policy.lab clusters images=cifar10-jpeg.zip
  python -m immiscible_policy.lab clusters images=cifar10-jpeg.zip n=2000 assigned=20
"""
PUBLISHED = {"vanilla": (0.92, 0.06), "knn": (2.17, 0.35), "linear": (4.11, 0.37)}
PUBLISHED_N = 10_000
K, BATCHES = 8, (128, 1024)
KS = (2, 4, 8, 16, 32, 64)
LATENT_DIMS = 4096
MOST = 1024
"""Images held in memory; the companions of the P images in a batch are drawn from them."""


class Row(NamedTuple):
    """One selector at one scale of the pixels.

    Attributes:
        name: The selector's name.
        option: Its k or its batch, as text.
        rms: Root mean square of the pixels of all images.
        n: Noises per image.
        distances: The measured distances.
        expected: Root mean square distance between the true means, in closed form, where there is one.
    """

    name: str
    option: str
    rms: float
    n: int
    distances: ClusterDistances
    expected: float | None

    @property
    def label(self) -> str:
        """Name and option."""
        return f"{self.name} {self.option}".strip()


class Curve(NamedTuple):
    """Distances for KNN in closed form.

    Attributes:
        label: Data and their scale.
        distances: What 10,000 noises per image would measure, for each of `KS`.
    """

    label: str
    distances: list[float]


def measure(options: dict[str, Any]) -> Findings:
    """Measure the distances between noise clusters on CIFAR-10 at its own scale and at unit scale."""
    count, n, assigned = (options[key] for key in ("pictures", "n", "assigned"))
    for key, least, most in (("pictures", 2, min(BATCHES)), ("n", 2, 100_000), ("assigned", 2, 100_000)):
        if not least <= options[key] <= most:
            raise CommandError(f"{key}={options[key]}: choose {least} to {most:,}")
    images = cifar_images(options["images"], MOST)
    own, dims = root_mean_square(images), images[0].numel()
    generator = torch_generator("cpu", "clusters", options["seed"])
    rows = [_row("vanilla", "", own, repeated_noise(make_selector("vanilla"), images[:count], n, generator), n, 0.0)]
    for rms in (own, 1.0):
        rows += _selected(images * (rms / own), rms, count, n, assigned, generator)
    pictures = images[:count] / own
    curves = [closed_form(f"CIFAR-10, pixel rms {rms:.2f}", rms * pictures) for rms in (0.25, own, 1.0, 2.0)]
    curves.append(closed_form("latents-sized, rms 1.00", latent_fields(count, generator)))
    figures = {
        "pictures": count,
        "dims": dims,
        "rows": [{**row._asdict(), "distances": asdict(row.distances)} for row in rows],
        "closed_form": {"k": KS, "curves": [curve._asdict() for curve in curves]},
        "published": PUBLISHED,
    }
    return Findings(figures, _text(rows, curves, count, dims), _picture(rows, curves, dims))


def _selected(
    images: Tensor, rms: float, count: int, n: int, assigned: int, generator: torch.Generator
) -> Iterator[Row]:
    """KNN and assignment on images of one scale."""
    pictures = images[:count]
    noise = repeated_noise(make_selector("knn", k=K), pictures, n, generator)
    yield _row("knn", f"k={K}", rms, noise, n, expected_distance(pictures, K))
    for size in BATCHES:
        batches = assigned * BATCHES[-1] // size  # a small batch is quickly assigned: more of them
        dealt = assigned_noise(make_selector("linear"), images, count, size, batches, generator)
        yield _row("linear", f"B={size}", rms, dealt, batches, None)


def _row(name: str, option: str, rms: float, noise: Iterable[Tensor], n: int, expected: float | None) -> Row:
    return Row(name, option, rms, n, cluster_distances(noise), expected)


def closed_form(label: str, pictures: Tensor) -> Curve:
    """Distances between the KNN clusters of pictures (P, ...), for every k."""
    return Curve(label, [raw_distance(expected_distance(pictures, k), pictures[0].numel()) for k in KS])


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
    """Choose n noises for each of the first images, in n batches with ever other companions.

    Args:
        select: The selector.
        images: All images (N, ...).
        count: How many of the first images stay in every batch, P.
        size: Images in a batch, at most N.
        n: Batches.
        generator: Source of randomness.

    Returns:
        Noise (P, n, ...).
    """
    chosen = []
    for _ in range(n):
        companions = count + torch.randperm(len(images) - count, generator=generator)[: size - count]
        batch = torch.cat([images[:count], images[companions]])
        chosen.append(select(batch, generator=generator)[:count])
    return torch.stack(chosen, dim=1)


def expected_distance(pictures: Tensor, k: int) -> float:
    """Root mean square distance between the true means of KNN noise of all pairs of pictures (P, ...).

    The mean for a picture x is E[z] x / ||x||, see `laws`.
    """
    projection = torch.tensor([each.projection for each in nearest_over(pictures, k)])  # (P,)
    units = torch.nn.functional.normalize(pictures.flatten(1))
    return float(torch.nn.functional.pdist(projection[:, None] * units).square().mean().sqrt())


def _text(rows: list[Row], curves: list[Curve], count: int, dims: int) -> str:
    header = [
        "selector",
        "pixel rms",
        "n",
        "mean ± std",
        "floor",
        "corrected",
        "closed form",
        "at n = 10,000",
        "published",
    ]
    cells = [
        [
            row.label,
            f"{row.rms:.2f}",
            f"{row.n:,}",
            f"{row.distances.mean:.2f} ± {row.distances.std:.2f}",
            f"{row.distances.floor:.2f}",
            f"{row.distances.corrected:.2f}",
            "" if row.expected is None else f"{row.expected:.2f}",
            f"{raw_distance(row.distances.corrected, dims):.2f}",
            _published(row.name, raw_distance(row.distances.corrected, dims)),
        ]
        for row in rows
    ]
    by_k = [[curve.label, *(f"{distance:.2f}" for distance in curve.distances)] for curve in curves]
    floors = [raw_distance(0, size) for size in (dims, LATENT_DIMS)]
    published, spread = PUBLISHED["vanilla"]
    return f"""\
## Distance between noise clusters

For each of {count} CIFAR-10 images (D = {dims:,}) n noises were selected and averaged. The table gives the Euclidean
distance between two such averages, mean and standard deviation over all {count * (count - 1) // 2} pairs.

- *Floor*: sqrt(2 D / n), what independent plain noise gives with no effect at all.
- *Corrected*: root mean square distance between the true means: the squared distances less what averaging n noises
  adds. Vanilla's is 0 but for chance.
- *Closed form*: the same for KNN, computed, not sampled: the mean noise of an image x is E[z] x / |x|, an integral over
  the law of the nearest of k.
- *At n = 10,000*: corrected and the floor of 10,000 noises added in squares, to stand beside the published figures;
  *inside* if it lies within their ±.
- *Pixel rms*: root mean square of the pixels, {rows[0].rms:.2f} for pixels in [-1, 1]; 1.00 where they were divided
  by it. The paper states neither its scale nor k nor the batch.

{table(header, cells)}

Distance at n = 10,000 for KNN, closed form:

{table(["", *(f"k={k}" for k in KS)], by_k)}

**Beside the published figures.** Most of the published vanilla distance is the floor: with 10,000 noises each it is
{floors[0]:.2f} at D = {dims:,} and {floors[1]:.2f} at D = {LATENT_DIMS:,}, the size of latents. A spread of ± {spread}
follows from neither (over pairs of images plain noise gives ± {rows[0].distances.std:.2f}): we found no definition that
gives {published:.2f} ± {spread}. The effect itself is the corrected column. Assignment's figure is set by the batch and
hardly by the scale of the pixels; KNN's by k and scale, and the second table shows which of them would give
{PUBLISHED["knn"][0]}.
"""


def _published(name: str, ours: float) -> str:
    middle, spread = PUBLISHED[name]
    return f"{middle:.2f} ± {spread:.2f} ({'inside' if abs(ours - middle) <= spread else 'outside'})"


def _picture(rows: list[Row], curves: list[Curve], dims: int) -> Figure:
    figure, (bars, lines) = panels(2, title="distance between the mean noises of two images")
    _draw_bars(bars, rows, dims)
    middle, spread = PUBLISHED["knn"]
    lines.axhspan(middle - spread, middle + spread, color=GREY, alpha=0.15, linewidth=0)
    lines.annotate("published, KNN", (KS[0], middle), color=GREY, fontsize=8, va="center")
    for colour, curve in zip(COLOURS, curves, strict=False):
        lines.plot(KS, curve.distances, marker="o", markersize=3.5, color=colour, label=curve.label)
    floor = raw_distance(0, dims)
    lines.axhline(floor, color=GREY, linestyle="--", linewidth=1)
    lines.annotate(f"floor, D = {dims:,}", (KS[-1], floor - 0.05), color=GREY, fontsize=8, va="top", ha="right")
    lines.set_xscale("log", base=2)
    lines.set_xticks(KS, [str(k) for k in KS])
    lines.set_ylim(0, 4.8)
    lines.set_xlabel("candidates k", fontsize=9)
    lines.set_title("KNN in closed form, n = 10,000 noises each", fontsize=10, loc="left")
    lines.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _draw_bars(axes: Axes, rows: list[Row], dims: int) -> None:
    at = np.arange(len(rows))
    colours = {"vanilla": GREY, "knn": COLOURS[0], "linear": COLOURS[1]}
    axes.bar(at, [row.distances.corrected for row in rows], color=[colours[row.name] for row in rows], width=0.6)
    axes.scatter(
        at,
        [raw_distance(row.distances.corrected, dims) for row in rows],
        color="black",
        s=18,
        zorder=3,
        label="with floor, n = 10,000",
    )
    middle, spread = zip(*(PUBLISHED[row.name] for row in rows), strict=True)
    axes.errorbar(
        at + 0.38,
        middle,
        yerr=spread,
        fmt="D",
        color=COLOURS[2],
        markersize=3,
        linewidth=1,
        capsize=2,
        label="published",
    )
    axes.set_xticks(at, [f"{row.label.replace(' ', chr(10))}\nrms {row.rms:.2f}" for row in rows], fontsize=7)
    axes.set_title("bars: corrected for the floor", fontsize=10, loc="left")
    axes.set_ylabel("Euclidean distance", fontsize=9)
    axes.set_ylim(0, 5.8)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "n": Option(int, PUBLISHED_N, "noises per image for vanilla and KNN"),
        "assigned": Option(int, 60, f"noises per image for assignment at B = {BATCHES[-1]}; smaller batches get more"),
        "pictures": Option(int, 10, "images whose noises are averaged, P"),
        "seed": SEED,
    },
)
