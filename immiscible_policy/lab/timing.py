"""How long a selection takes: every selector, by batch and by numbers per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option, parse_range
from immiscible_policy.lab.data import DATA, IMAGES, SEED, cifar_images, latent_fields, pusht_actions
from immiscible_policy.lab.report import panels, table
from immiscible_policy.noise import SELECTORS, Selector, fit_potentials, make_selector
from immiscible_policy.noise.audit import selection_seconds
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab timing [KEY=VALUE ...]

How long each selector takes for a batch of 64 to 4,096 samples of 32, 3,072 and 4,096 numbers, drawing included.

Medians over rounds that alternate between the selectors, beside the published times (Improved Immiscible Diffusion,
arXiv 2505.18521, Table 5). On a GPU every call is timed between two synchronisations. A selector that takes longer
than patience= seconds for a batch is not tried on larger ones, and one that takes long is not repeated.

  python -m immiscible_policy.lab timing images=cifar10-jpeg.zip
  python -m immiscible_policy.lab timing batches=128,256,512,1024 rounds=20 patience=60
  python -m immiscible_policy.lab timing device=cuda
"""
PUBLISHED = {
    "assignment": {128: 5.4, 256: 6.7, 512: 8.8, 1024: 22.8},
    "KNN": {128: 0.2, 256: 0.2, 512: 0.3, 1024: 0.7},
}
BATCHES = "64,128,256,512,1024,2048,4096"
LONG = 0.2
"""A selection that takes more seconds than this is timed once."""
CONDITION_SIZE = 20
FIT_STEPS = 1000
"""Steps of the fit behind "linear, potentials"; fitting is done once and not timed."""


class Cell(NamedTuple):
    """One selector on one batch.

    Attributes:
        selector: Its label.
        dims: Numbers per sample, D.
        batch: Samples, B.
        seconds: Median duration.
        rounds: How many durations the median is over.
    """

    selector: str
    dims: int
    batch: int
    seconds: float
    rounds: int


def measure(options: dict[str, Any]) -> Findings:
    """Time every selector on every batch."""
    batches = sorted(parse_range("batches", options["batches"]))
    for key in ("k", "rounds", "threads"):
        if options[key] < 1:
            raise CommandError(f"{key}={options[key]}: needs 1 or more")
    if not options["patience"] >= 0:
        raise CommandError(f"patience={options['patience']}: needs seconds, 0 or more")
    if not 1 <= batches[0] <= batches[-1] <= 8192:
        raise CommandError(f"batches={options['batches']}: choose batches of 1 to 8,192")
    device = _device(options["device"])
    torch.set_num_threads(options["threads"])
    selectors = all_selectors(options["k"])
    data = _data(options["images"], options["data"], batches[-1], options["seed"])
    cells = []
    for x, _ in data.values():
        known = make_selector("linear", potentials=fit_potentials(x, steps=FIT_STEPS))
        arms = {**selectors, "linear, potentials": known}
        cells += time_all(arms, x.to(device), batches, options["rounds"], options["patience"], options["seed"])
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {options['threads']} thread{'s' * (options['threads'] > 1)}"
    )
    figures = {
        "device": where,
        "data": {str(dims): label for dims, (_, label) in data.items()},
        "cells": [cell._asdict() for cell in cells],
        "published_ms": {name: {str(batch): ms for batch, ms in found.items()} for name, found in PUBLISHED.items()},
    }
    labels = {dims: label for dims, (_, label) in data.items()}
    return Findings(figures, _text(cells, labels, batches, where), _picture(cells, labels, batches, where))


def all_selectors(k: int) -> dict[str, Selector]:
    """Every selector of the registry with its defaults, KNN with k candidates in both of its forms."""
    found = {name: make_selector(name) for name in SELECTORS if name != "knn"}
    both = {f"knn k={k}": make_selector("knn", k=k), f"knn k={k} literal": make_selector("knn", k=k, form="literal")}
    return {"vanilla": found.pop("vanilla"), **both, **found}


def time_all(
    selectors: Mapping[str, Selector], x: Tensor, batches: Sequence[int], rounds: int, patience: float, seed: int
) -> list[Cell]:
    """Time selectors on the first B samples of x, for every B, in alternation.

    Args:
        selectors: By label.
        x: Samples (N, ...), at least as many as the largest batch.
        batches: Batches, smallest first.
        rounds: Durations per selector and batch.
        patience: A selector slower than so many seconds is not tried on larger batches.
        seed: Seed of noise and conditions.
    """
    generator = torch_generator(x.device, "timing", seed)
    condition = torch.randn(len(x), CONDITION_SIZE, generator=generator, device=x.device)
    cells: list[Cell] = []
    patient = dict(selectors)
    for batch in batches:
        found = _alternate(patient, x[:batch], condition[:batch], rounds, generator)
        cells += [Cell(name, x[0].numel(), batch, median(times), len(times)) for name, times in found.items()]
        patient = {name: select for name, select in patient.items() if median(found[name]) <= patience}
    return cells


def _alternate(
    selectors: Mapping[str, Selector], x: Tensor, condition: Tensor, rounds: int, generator: torch.Generator
) -> dict[str, list[float]]:
    """Seconds of each selector, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in selectors}
    for _ in range(rounds):
        for name, select in selectors.items():
            if not seconds[name] or seconds[name][0] <= LONG:
                seconds[name].append(selection_seconds(select, x, 1, condition=condition, generator=generator))
    return seconds


def _data(images: Path | None, store: Path | None, n: int, seed: int) -> dict[int, tuple[Tensor, str]]:
    """Samples and what they are, by D."""
    generator = torch_generator("cpu", "timing data", seed)
    actions = pusht_actions(store)
    rows = torch.randint(len(actions), (n,), generator=generator)
    pixels = 0.5 * torch.randn(n, 3, 32, 32, generator=generator) if images is None else cifar_images(images, n)
    return {
        32: (actions[rows], "PushT actions"),
        3072: (pixels, "Gaussian numbers in place of CIFAR-10" if images is None else "CIFAR-10 pixels"),
        4096: (latent_fields(n, generator), "latents-sized fields"),
    }


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise CommandError(f"device={name}: choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("device=cuda: no CUDA device is available here; choose device=cpu")
    return torch.device(name)


def _text(cells: list[Cell], labels: dict[int, str], batches: list[int], where: str) -> str:
    rounds = max(cell.rounds for cell in cells)
    parts = [
        f"""\
## Time of a selection

Milliseconds to choose the noise of a batch, drawing it included; {where}. Medians over {rounds} rounds that alternate
between the selectors; selections of more than {LONG} s were timed once. A dash: not tried, the smaller batch had taken
too long. c2ot is given random conditions of {CONDITION_SIZE} numbers.

- The floor is vanilla's row: drawing plain noise.
- *literal* draws all k noises, as the papers do; the form beside it whichever of this and drawing the
  winner alone is cheaper, with the same law.
- *linear, potentials* is linear with dual potentials fitted to the data beforehand: the same pairs.
- Published times (D and k not stated; A5000 in the paper, A6000 in its repository) are of another machine: only the
  growth with the batch can be compared, unless this is a GPU too.
"""
    ]
    for dims, label in labels.items():
        names = list(dict.fromkeys(cell.selector for cell in cells if cell.dims == dims))
        known = {(cell.selector, cell.batch): cell.seconds for cell in cells if cell.dims == dims}
        rows = [[name, *(_ms(known.get((name, batch))) for batch in batches)] for name in names]
        parts.append(f"D = {dims:,} ({label})\n\n{table(['B', *(f'{batch:,}' for batch in batches)], rows)}\n")
    published = [
        [f"{name}, published", *(f"{found[batch]}" if batch in found else "" for batch in batches)]
        for name, found in PUBLISHED.items()
    ]
    return "\n".join([*parts, table(["B", *(f"{batch:,}" for batch in batches)], published)])


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _picture(cells: list[Cell], labels: dict[int, str], batches: list[int], where: str) -> Figure:
    figure, axes = panels(len(labels), title=f"time of a selection, {where}; grey marks: published times, on a GPU")
    for each, (dims, label) in zip(axes, labels.items(), strict=True):
        _draw(each, [cell for cell in cells if cell.dims == dims])
        each.set_xscale("log", base=2)
        each.set_yscale("log")
        each.set_xticks(batches, [str(batch) for batch in batches])
        each.set_xlabel("batch B", fontsize=9)
        each.set_title(f"D = {dims:,}: {label}", fontsize=10, loc="left")
    low, high = (f(each.get_ylim()[i] for each in axes) for i, f in ((0, min), (1, max)))
    for each in axes:
        each.set_ylim(low, high)
    axes[0].set_ylabel("milliseconds", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _draw(axes: Axes, cells: list[Cell]) -> None:
    names = list(dict.fromkeys(cell.selector for cell in cells))
    colours = dict(zip((name for name in names if "literal" not in name), (GREY, *COLOURS), strict=False))
    for name in names:
        shown = [cell for cell in cells if cell.selector == name]
        style, colour = ("--" if "literal" in name else "-"), colours[name.removesuffix(" literal")]
        times = [1e3 * cell.seconds for cell in shown]
        axes.plot([cell.batch for cell in shown], times, style, color=colour, marker="o", markersize=3, label=name)
    for marker, (name, found) in zip("sD", PUBLISHED.items(), strict=True):
        axes.scatter(list(found), list(found.values()), marker=marker, s=16, color="#999999", zorder=0)
        largest = max(found)
        axes.annotate(
            f"{name}, published",
            (largest, found[largest]),
            (6, -6),
            textcoords="offset points",
            color="#777777",
            fontsize=7,
            va="top",
        )


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "data": DATA,
        "batches": Option(str, BATCHES, "batches, such as 128,256"),
        "k": Option(int, 8, "candidates of KNN"),
        "rounds": Option(int, 5, "rounds over the selectors"),
        "patience": Option(float, 1.0, "seconds after which a selector is not tried on larger batches"),
        "threads": Option(int, 1, "CPU threads"),
        "device": Option(str, "cpu", "cpu or cuda"),
        "seed": SEED,
    },
)
