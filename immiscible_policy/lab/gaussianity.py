"""Is the selected noise still Gaussian: the KL divergence of a fitted Gaussian, beside its finite-sample floor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.lab.data import IMAGES, SEED, cifar_images, root_mean_square
from immiscible_policy.lab.laws import nearest_over
from immiscible_policy.lab.report import panels, table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.noise.audit.statistics import GaussianKL, gaussian_kl, kl_floor
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab gaussianity images=PATH [KEY=VALUE ...]

How far the noise selected for n images is from N(0, I), beside what the same number of plain noises gives.

A Gaussian is fitted to n noises of D = 3,072 numbers, one for each CIFAR-10 image, and its KL divergence from N(0, I)
is taken (Improved Immiscible Diffusion, arXiv 2505.18521, with n = 50,000). Fitting alone costs tens of nats: the
floor. Only what lies above it speaks of the noise. Needs about 2 GB of memory at n = 50,000.

  python -m immiscible_policy.lab gaussianity images=cifar10-jpeg.zip
  python -m immiscible_policy.lab gaussianity images=cifar10-jpeg.zip n=10000
"""
PUBLISHED = {"vanilla": 48.25, "knn k=8": 48.60}
PUBLISHED_N, K = 50_000, 8
CHUNK = 1000


class Row(NamedTuple):
    """One selector at one scale of the pixels.

    Attributes:
        selector: Its name and options.
        rms: Root mean square of the pixels.
        found: The divergence with its floor.
        squared_norm: Mean squared norm of the noise; D for N(0, I).
        expected_norm: Its expectation, in closed form.
    """

    selector: str
    rms: float
    found: GaussianKL
    squared_norm: float
    expected_norm: float


def measure(options: dict[str, Any]) -> Findings:
    """Select noise for n images by every rule, fit Gaussians, compare with N(0, I)."""
    n, seed = options["n"], options["seed"]
    if n <= 3072:
        raise CommandError(f"n={n}: a covariance of 3,072 numbers needs more than 3,072 noises")
    images = cifar_images(options["images"], n)
    own, dims = root_mean_square(images), images[0].numel()
    angle = make_selector("knn", k=K, nearest="angle")
    rows = [
        _row("vanilla", make_selector("vanilla"), images, 1.0, seed, dims),
        _row(f"knn k={K}", make_selector("knn", k=K), images, 1.0, seed, _expected_norm(images)),
        _row(f"knn k={K}", make_selector("knn", k=K), images, 1 / own, seed, _expected_norm(images / own)),
        _row(f"knn k={K} nearest=angle", angle, images, 1.0, seed, dims),
    ]
    figures = {
        "definition": "KL(N(m, S) || N(0, I)) in nats; fitted mean m, maximum-likelihood covariance S",
        "n": n,
        "dims": dims,
        "rows": [{**row._asdict(), "found": asdict(row.found)} for row in rows],
        "published": {**PUBLISHED, "n": PUBLISHED_N},
    }
    return Findings(figures, _text(rows, n, dims), _picture(rows, n))


def _row(name: str, select: Selector, images: Tensor, scale: float, seed: int, expected_norm: float) -> Row:
    noise = noise_for(select, images, scale, torch_generator("cpu", "gaussianity", seed))
    squared_norm = float(noise.flatten(1).norm(dim=1).double().square().mean())
    return Row(name, scale * root_mean_square(images), gaussian_kl(noise), squared_norm, expected_norm)


def noise_for(select: Selector, images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Choose one noise for each of scale * images (N, ...), a thousand at a time to spare memory."""
    noise = torch.empty_like(images)
    for chosen, part in zip(noise.split(CHUNK), images.split(CHUNK), strict=True):
        chosen.copy_(select(scale * part, generator=generator))
    return noise


def _expected_norm(images: Tensor) -> float:
    return float(np.mean([each.squared_norm for each in nearest_over(images, K)]))


def _text(rows: list[Row], n: int, dims: int) -> str:
    floor, deviation = kl_floor(n, dims)
    published_floor, one = kl_floor(PUBLISHED_N, dims)
    numbers, mean_cost = dims * (dims + 3) // 2, dims / (2 * PUBLISHED_N)
    plain, knn = PUBLISHED.values()
    header = [
        "selector",
        "pixel rms",
        "KL",
        "over the floor",
        "in deviations",
        "squared norm",
        "expected",
        "published KL",
    ]
    cells = [
        [
            row.selector,
            f"{row.rms:.2f}",
            f"{row.found.kl:.3f}",
            f"{row.found.excess:+.3f}",
            f"{row.found.excess / deviation:+.1f}",
            f"{row.squared_norm:,.1f}",
            f"{row.expected_norm:,.1f}",
            f"{PUBLISHED[row.selector]:.2f}" if row.selector in PUBLISHED else "",
        ]
        for row in rows
    ]
    return f"""\
## Is the selected noise still Gaussian?

One noise was selected for each of {n:,} CIFAR-10 images (D = {dims:,}), a Gaussian N(m, S) was fitted to all of them,
and its KL divergence from N(0, I) taken: (tr S + |m|^2 - D - log det S) / 2, in nats.

- *Floor*: the expectation of this figure for {n:,} noises that are exactly N(0, I), in closed form (S has a Wishart
  law): {floor:.2f}, with a standard deviation of {deviation:.3f}. It is the cost of fitting {numbers:,} numbers.
- *Which definition*: the paper gives none. With {PUBLISHED_N:,} noises, a fitted mean and a fitted covariance the
  floor is {published_floor:.2f} nats, right below the published vanilla figure; the covariance's divisor, n or n - 1,
  does not change it in five decimals, and a mean taken as 0 would give {published_floor - mean_cost:.2f}.
- *Squared norm*: its mean over the noises, beside its expectation in closed form; {dims:,} for N(0, I).

{table(header, cells)}

**What it says.** Only the part over the floor speaks of the noise. The published figures lie
{plain - published_floor:+.2f} and {knn - published_floor:+.2f} nats over it, and one deviation is {one:.3f}: the first
is chance, the second is {(knn - published_floor) / one:.0f} deviations and says that KNN noise is measurably not
N(0, I), if near it. The cause is its length: nearest by distance prefers short noises, the less so the longer the
image, so the figure depends on the scale of the pixels, which the paper does not state. Choosing by angle keeps the law
of the length.

Assignment needs no row: it permutes the batch's own noises, so its {n:,} noises are vanilla's, and so is the figure.
None of this looks at the law of the noise given its image; there every selector differs from N(0, I), as it is meant
to.
"""


def _picture(rows: list[Row], n: int) -> Figure:
    figure, (kl, norm) = panels(2, title=f"one noise for each of {n:,} CIFAR-10 images")
    deviation, dims = rows[0].found.deviation, rows[0].expected_norm
    kl.axhspan(-2 * deviation, 2 * deviation, color=GREY, alpha=0.2, linewidth=0, label="plain noise, 2 deviations")
    _draw_bars(kl, rows, [row.found.excess for row in rows], "{:+.2f}")
    if n == PUBLISHED_N:
        known = [place for place, row in enumerate(rows) if row.selector in PUBLISHED]
        excess = [PUBLISHED[rows[place].selector] - rows[place].found.floor for place in known]
        places = [place + 0.38 for place in known]
        kl.scatter(places, excess, marker="D", color=COLOURS[2], s=24, zorder=3, label="published")
    kl.set_title("KL of the fitted Gaussian over its floor [nats]", fontsize=10, loc="left")
    kl.legend(fontsize=8, frameon=False, loc="upper right")
    _draw_bars(norm, rows, [row.squared_norm - dims for row in rows], "{:+.1f}")
    norm.set_title(f"mean squared norm of the noise, less D = {dims:,.0f}", fontsize=10, loc="left")
    return figure


def _draw_bars(axes: Axes, rows: list[Row], values: list[float], form: str) -> None:
    at = np.arange(len(rows))
    axes.bar(at, values, color=[GREY, COLOURS[0], COLOURS[0], COLOURS[1]], width=0.6)
    axes.axhline(0, color=GREY, linewidth=1)
    for place, value in zip(at, values, strict=True):
        text, side, va = form.format(value), *((1, "bottom") if value > 0 else (-1, "top"))
        axes.annotate(text, (place, value), (0, 3 * side), textcoords="offset points", ha="center", va=va, fontsize=8)
    axes.set_xticks(at, [f"{row.selector.replace(' ', chr(10))}\nrms {row.rms:.2f}" for row in rows], fontsize=7)
    axes.margins(y=0.12)


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "n": Option(int, PUBLISHED_N, "images, and so noises"),
        "seed": SEED,
    },
)
