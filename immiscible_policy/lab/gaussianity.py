"""How far the noise selected for n images is from N(0, I), compared with as many plain noises.

One noise is selected for each of n CIFAR-10 images (D = 3,072), a Gaussian N(m, S) is fitted to all of them, and its
KL divergence from N(0, I) taken: (tr S + |m|^2 - D - log det S) / 2, in nats (arXiv 2505.18521, with n = 50,000).

- *Floor*: the expectation of this figure for n noises that are exactly N(0, I), in closed form (S has a Wishart law).
  It is the cost of fitting D (D + 3) / 2 numbers; only what lies above it is about the noise. The paper gives no
  definition; a fitted mean and covariance have a floor of 48.23 nats at n = 50,000, right below its vanilla figure.
- *Squared norm*: its mean over the noises, beside its expectation in closed form; D for N(0, I). Nearest by distance
  prefers short noises, the less so the longer the image; by angle the law of the length is kept.
- Assignment needs no row: it permutes the batch's own noises, so its figure is vanilla's. None of this looks at the
  law of the noise given its image; there every selector differs from N(0, I), as it is meant to.

Needs about 2 GB of memory at n = 50,000.

  python -m immiscible_policy.lab gaussianity images=cifar10-jpeg.zip
  python -m immiscible_policy.lab gaussianity images=cifar10-jpeg.zip n=10000
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import COUNT, Option
from immiscible_policy.lab.data import IMAGES, SEED, cifar_images, root_mean_square
from immiscible_policy.lab.laws import nearest_over
from immiscible_policy.lab.program import Document, legend, plain, program, require, table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.noise.audit.statistics import gaussian_kl, kl_floor
from immiscible_policy.palette import GREY, INK, NAMED, panels, readable
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings

PUBLISHED = {"vanilla": 48.25, "knn k=8": 48.60}
PUBLISHED_N, K, DIMS = 50_000, 8, 3072
CHUNK = 1000
COLUMNS = {
    "selector": "{selector}",
    "pixel rms": "{rms:.2f}",
    "KL": "{divergence[kl]:.3f}",
    "over the floor": "{divergence[excess]:+.3f}",
    "in deviations": "{deviations:+.1f}",
    "squared norm": "{squared_norm:,.1f}",
    "expected": "{expected_norm:,.1f}",
    "published KL": "{published:.2f}",
}


def measure(options: Document) -> Findings:
    """Select noise for n images by every rule, fit Gaussians, compare with N(0, I)."""
    n, seed = options["n"], options["seed"]
    require(options, n=(DIMS + 1, float("inf")))  # a covariance of D numbers needs more than D noises
    images = cifar_images(options["images"], n)
    own, knn = root_mean_square(images), make_selector("knn", k=K)
    rows: list[Document] = []
    norms = [float(np.mean([law.squared_norm for law in nearest_over(x, K)])) for x in (images, images / own)]
    for name, select, scale, expected_norm in (
        ("vanilla", make_selector("vanilla"), 1.0, DIMS),
        (f"knn k={K}", knn, 1.0, norms[0]),
        (f"knn k={K}", knn, 1 / own, norms[1]),
        (f"knn k={K} nearest=angle", make_selector("knn", k=K, nearest="angle"), 1.0, DIMS),
    ):
        noise = noise_for(select, images, scale, torch_generator("cpu", "gaussianity", seed))
        divergence = gaussian_kl(noise)
        squared_norm = float(noise.flatten(1).norm(dim=1).double().square().mean())
        rows.append({"selector": name, "rms": scale * own, "divergence": asdict(divergence),
                     "deviations": divergence.excess / divergence.deviation, "squared_norm": squared_norm,
                     "expected_norm": expected_norm, "published": PUBLISHED.get(name)})  # fmt: skip
    figures = {"n": n, "dims": DIMS, "rows": rows, "published": {**PUBLISHED, "n": PUBLISHED_N}}
    return Findings(figures, describe(figures), draw(figures))


def noise_for(select: Selector, images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Choose one noise for each of scale * images (N, ...), a thousand at a time to spare memory."""
    noise = torch.empty_like(images)
    for chosen, part in zip(noise.split(CHUNK), images.split(CHUNK), strict=True):
        chosen.copy_(select(scale * part, generator=generator))
    return noise


def describe(figures: Document) -> str:
    """The divergences, and what the published ones lie over their floor."""
    floor, deviation = kl_floor(figures["n"], DIMS)
    published_floor, published_deviation = kl_floor(PUBLISHED_N, DIMS)
    over = {name: kl - published_floor for name, kl in PUBLISHED.items()}
    published = ", ".join(f"{name} {kl:+.2f} ({kl / published_deviation:+.0f} deviations)" for name, kl in over.items())
    return f"""\
n = {figures["n"]:,}: the floor is {floor:.2f}, its standard deviation {deviation:.3f}.

{table(COLUMNS, figures["rows"])}

The published figures over their floor: {published}."""


def draw(figures: Document) -> Figure:
    """The divergence over its floor, and the mean squared norm over D."""
    rows = figures["rows"]
    figure, (kl, norm) = panels(2, title=f"one noise for each of {figures['n']:,} CIFAR-10 images")
    plain(kl, "KL of the fitted Gaussian over its floor [nats]")
    plain(norm, f"mean squared norm of the noise - {DIMS:,}")
    names = [row["selector"].split()[0] for row in rows]
    deviation, at = rows[0]["divergence"]["deviation"], np.arange(len(rows))
    kl.axhspan(-2 * deviation, 2 * deviation, color=GREY, alpha=0.2, linewidth=0, label="plain noise, 2 deviations")
    for axes, values, form in (
        (kl, [row["divergence"]["excess"] for row in rows], "{:+.2f}"),
        (norm, [row["squared_norm"] - DIMS for row in rows], "{:+.1f}"),
    ):
        bars = axes.bar(at, values, color=[NAMED[name] for name in names], width=0.6)
        axes.bar_label(bars, fmt=form, padding=3, fontsize=8)
        axes.axhline(0, color=GREY, linewidth=1)
        labels = ["\n".join([*readable(row["selector"]).split(), f"rms {row['rms']:.2f}"]) for row in rows]
        axes.set_xticks(at, labels, fontsize=7)
        axes.margins(y=0.12)
    if figures["n"] == PUBLISHED_N:
        known = [place for place, row in enumerate(rows) if row["published"]]
        excess = [rows[place]["published"] - rows[place]["divergence"]["floor"] for place in known]
        places = [place + 0.38 for place in known]
        kl.scatter(places, excess, marker="D", color=INK, s=24, zorder=3, label="published")
    legend(kl, "upper right")
    return figure


OPTIONS = {"images": IMAGES, "n": Option(COUNT, PUBLISHED_N, "images, and so noises"), "seed": SEED}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
