"""Image scaling: how the standard deviation that the data is brought to changes what a small model generates."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.image.build import PIXEL_STD
from immiscible_policy.lab.data import IMAGES, MODELS, SEED, WITHOUT_CIFAR
from immiscible_policy.lab.image_models import SIZE, ImageTraining, image_model, require_models
from immiscible_policy.lab.pixels import FEATURES, RealImages, distance_to, real_images, tiled
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.solver import Solver

USAGE = """\
usage: python -m immiscible_policy.lab scaling [KEY=VALUE ...]

Shows how the data's standard deviation, 0.25 to 4 (0.5: pixels in [-1, 1]), changes what a diffusion model generates.

Figure 8 of Improved Immiscible Diffusion (arXiv 2505.18521). One small model for each standard deviation learns
CIFAR-10 averaged to 16x16; those absent from models= are trained first, about four minutes each on one core.

  python -m immiscible_policy.lab scaling images=cifar10-jpeg.zip
  python -m immiscible_policy.lab scaling images=cifar10-jpeg.zip stds=0.5,1,2 noise=vanilla,knn
"""
TRAININGS = {"vanilla": ImageTraining(), "knn": ImageTraining("knn", {"k": 8})}
LABELS = {"vanilla": "vanilla", "knn": "KNN k=8"}
GRID = 16
"""Samples drawn of each model."""
COLUMNS = 3
BATCH = 250


class Sampled(NamedTuple):
    """What a model generated.

    Attributes:
        distance: Squared Fréchet distance to the test images.
        std: Standard deviation of the samples' pixels.
        grid: The first samples (GRID, 3, S, S).
    """

    distance: float
    std: float
    grid: Tensor


def measure(options: dict[str, Any]) -> Findings:
    """Sample every model from the same start noises and compare the samples with the test images."""
    stds, noises = _stds(options["stds"]), options["noise"].split(",")
    if options["images"] is None:
        raise CommandError(f"scaling needs images; {WITHOUT_CIFAR}")
    for noise in noises:
        if noise not in TRAININGS:
            raise CommandError(f"noise={noise}: scaling knows {', '.join(TRAININGS)}")
    images, models, n, seed = (options[key] for key in ("images", "models", "n", "seed"))
    steps = options["sampling_steps"]
    Solver("ddim", steps)  # refuses what is no number of steps
    trainings = [replace(TRAININGS[noise], data_std=std) for noise in noises for std in stds]
    require_models(models, images, trainings)
    real = real_images(images, n, torch_generator("cpu", "scaling real", seed))
    sampled = {
        noise: {std: sample_model(models, images, noise, std, real, n, steps, seed) for std in stds} for noise in noises
    }
    return Findings(_figures(sampled, real, n, steps), _text(sampled, real, n, steps), _picture(sampled, real))


def sample_model(
    models: Path, images: Path, noise: str, std: float, real: RealImages, n: int, steps: int, seed: int
) -> Sampled:
    """Generate n images with the model of a selector and a standard deviation, and compare them with real ones."""
    model = image_model(models, images, replace(TRAININGS[noise], data_std=std))
    start = torch.randn(n, 3, SIZE, SIZE, generator=torch_generator("cpu", "scaling", seed))
    pixels = torch.cat([model.sample(part, Solver("ddim", steps)).images for part in start.split(BATCH)])
    return Sampled(distance_to(real.statistics, pixels), float(pixels.std()), pixels[:GRID])


def _stds(text: str) -> list[float]:
    """Standard deviations written as `0.25,0.5,1`."""
    try:
        stds = [float(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"stds={text}: write numbers joined by commas, such as 0.25,0.5,1") from None
    if not all(0 < std < float("inf") for std in stds) or len(set(stds)) < len(stds):
        raise CommandError(f"stds={text}: needs different numbers above 0")
    return sorted(stds)


def _figures(sampled: Mapping[str, Mapping[float, Sampled]], real: RealImages, n: int, steps: int) -> dict[str, Any]:
    rows = [
        {"noise": LABELS[noise], "data_std": std, "frechet": found.distance, "sample_std": found.std}
        for noise, by_std in sampled.items()
        for std, found in by_std.items()
    ]
    ends = {"frechet_floor": real.floor, "frechet_plain_noise": real.noise}
    training = TRAININGS["vanilla"]
    return {"n": n, "sampling_steps": steps, "training_steps": training.steps, **ends, "rows": rows}


def _text(sampled: Mapping[str, Mapping[float, Sampled]], real: RealImages, n: int, steps: int) -> str:
    training = TRAININGS["vanilla"]
    rows = [
        [LABELS[noise], f"{std:g}", f"{found.distance:.2f}", f"{found.std:.3f}"]
        for noise, by_std in sampled.items()
        for std, found in by_std.items()
    ]
    rows.append(["floor: real images", "", f"{real.floor:.2f}", f"{float(real.pixels.std()):.3f}"])
    rows.append(["plain noise", "", f"{real.noise:.2f}", ""])
    models = (
        f"Models of about 0.7 M parameters, CIFAR-10 averaged to {SIZE}x{SIZE}, {training.steps:,} steps at batch "
        f"{training.batch_size}, one seed; {n:,} samples by DDIM (eta = 0, {steps} steps), from the same start noises "
        f"for every model. Squared Fréchet distance on {FEATURES} to the {len(real.pixels):,} test images: it is not "
        f"FID, and sees colours and coarse shapes only. The floor is what {n:,} training images score. The last column "
        "shows how much contrast the samples lack beside real images."
    )
    return f"""\
## Image scaling

The pixels are multiplied by a factor before noise is chosen and added, and divided by it after sampling; *data std* is
the standard deviation that this brings them to, 0.5 for pixels in [-1, 1] as they are (Figure 8 of arXiv 2505.18521).
The range to which predicted clean samples are clipped is multiplied by the same factor. Under the same noise schedule a
larger factor means more signal at every step.

{textwrap.fill(models, 120)}

{table(["noise", "data std", "Fréchet distance²", "std of the samples' pixels"], rows)}

{textwrap.fill(_verdict(sampled), 120)}
"""


def _verdict(sampled: Mapping[str, Mapping[float, Sampled]]) -> str:
    """Which standard deviation came out best, beside what the paper says."""
    best = [
        f"{LABELS[noise]} is nearest to real images at data std {min(by_std, key=lambda std: by_std[std].distance):g}"
        for noise, by_std in sampled.items()
    ]
    return (
        "**Beside the paper**: Figure 8 shows std 1 and 2 training faster and ending better than 0.5. Here "
        f"{'; '.join(best)}. With one training seed for each, small differences say nothing."
    )


def _picture(sampled: Mapping[str, Mapping[float, Sampled]], real: RealImages) -> Figure:
    grids = {
        f"{LABELS[noise]}, data std {std:g}": found.grid
        for noise, by_std in sampled.items()
        for std, found in by_std.items()
    }
    grids[f"real, averaged to {SIZE}x{SIZE}"] = real.pixels[:GRID]
    rows = -(-len(grids) // COLUMNS)
    figure = Figure(figsize=(5 + 2.3 * COLUMNS, max(3.6, 2.5 * rows)), dpi=130, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[5, 2.3 * COLUMNS])
    _draw_curve(halves[0].subplots(), sampled, real)
    cells = list(halves[1].subplots(rows, COLUMNS, squeeze=False).flat)
    for cell in cells:
        cell.axis("off")
    for cell, (title, images) in zip(cells, grids.items(), strict=False):
        cell.imshow(tiled(images, 4).numpy(), interpolation="nearest")
        cell.set_title(title, fontsize=8)
    return figure


def _draw_curve(axes: Any, sampled: Mapping[str, Mapping[float, Sampled]], real: RealImages) -> None:
    for colour, (noise, by_std) in zip(COLOURS, sampled.items(), strict=False):
        distances = [found.distance for found in by_std.values()]
        axes.plot(list(by_std), distances, color=colour, marker="o", linewidth=1.8, label=LABELS[noise])
    axes.axhline(real.floor, color=GREY, linestyle="--", linewidth=1, label="floor: real images")
    axes.axvline(PIXEL_STD, color="#BBBBBB", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(next(iter(sampled.values()))), [f"{std:g}" for std in next(iter(sampled.values()))])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("data std (grey line: pixels as they are)", fontsize=9)
    axes.set_title("Fréchet distance² of 8x8 pixels to real images", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "models": MODELS,
        "stds": Option(str, "0.25,0.5,1,2,4", "standard deviations of the data, joined by commas"),
        "noise": Option(str, "vanilla", "vanilla, knn, or both joined by a comma"),
        "n": Option(int, 2000, "samples of each model"),
        "sampling_steps": Option(int, 50, "DDIM steps"),
        "seed": SEED,
    },
)
