"""What every selector does to the noise of action chunks, and to the noise that one observation meets.

The noise audit of each selector on the same batches of normalised action chunks and observations.

- *Distance*: change of the mean Euclidean distance of sample and noise against plain noise.
- *Mean squared norm*: the numbers of a chunk for N(0, I), which sampling starts from.
- *KS*: largest gap between the distribution of all numbers and N(0, 1).
- *Correlation with the action*: of the mean of a chunk with the mean of its noise.
- *Prior shift*: root mean square length of the mean noise that one observation meets, as far as it is linear in the
  observation. Sampling starts from mean 0 for every observation; vanilla's figure is the chance in the estimate.
  *Held out*: the same by the better of a linear fit and a small network, fitted to other episodes; with the variance
  of the noise given the observation, and the *spread* of its mean square over observations (0 for plain noise).
- *KL*: the most that E KL(q(e|x) || N(0, I)) can be, in nats: log k - 1 + 1/k for KNN, log 2 for sign, the log of the
  noises in a batch for assignment. It is spent on prior shift and start mismatch (*harm*, at least), and what is left
  is information about the action beyond the observation, the only benefit.
- *Left to guess*: variance of the noise given the noisy action at alpha_bar 0.9, per number, at most: what miscibility
  costs the denoiser. For selectors that pair within a batch it is for one batch paired with itself.

  python -m immiscible_policy.lab selectors
  python -m immiscible_policy.lab selectors data=STORE batches=32
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.cli import COUNT, Option
from immiscible_policy.lab.data import DATA, SEED, TASK, demonstrated
from immiscible_policy.lab.program import Document, plain, program, require, table
from immiscible_policy.noise import cross_fitted, fit_mlp_prediction, make_selector
from immiscible_policy.noise.audit import Audit, Explained, Probe, audit, explained, probe
from immiscible_policy.palette import GREY, named
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.tasks import find_task

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "vanilla": ("vanilla", {}),
    "KNN k=2": ("knn", {"k": 2}),
    "KNN k=8": ("knn", {"k": 8}),
    "KNN k=2 by angle": ("knn", {"k": 2, "nearest": "angle"}),
    "KNN k=8 by angle": ("knn", {"k": 8, "nearest": "angle"}),
    "sign": ("sign", {}),
    "linear": ("linear", {}),
    "linear, pool of 4": ("linear", {"pool": 4}),
    "idp26": ("idp26", {}),
    "c2ot": ("c2ot", {}),
    "c2ot, ratio 0.2": ("c2ot", {"ratio": 0.2}),
}
FOR_RESIDUAL = ("KNN k=2", "sign", "linear")
"""Arms that are also measured for the residual of a small network that predicts the action."""
LEVEL = 0.9
COLUMNS: dict[str, tuple[Callable[[Audit], float], str]] = {  # how a figure is read, and how it is written
    "distance [%]": (lambda result: result.distance.percent, "{:+.2f}"),
    "mean squared norm": (lambda result: result.selected.squared_norm, "{:.2f}"),
    "KS": (lambda result: result.ks.statistic, "{:.4f}"),
    "correlation with the action": (lambda result: result.correlation.row_means, "{:+.2f}"),
    "prior shift": (lambda result: result.prior_shift or 0.0, "{:.2f}"),
    "left to guess": (lambda result: result.target.selected[result.target.alpha_bars.index(LEVEL)], "{:.4f}"),
    "KL at most [nats]": (lambda result: result.divergence or 0.0, "{:.3f}"),
}


def measure(options: Document) -> Findings:
    """Audit all selectors on the windows of a store."""
    require(options, batch_size=(4, 4096), batches=(2, 1000))
    windows = demonstrated(find_task(options["task"]), options["data"])
    x = Normalizer.fit(windows.action).normalize(windows.action)
    condition = Normalizer.fit(windows.obs).normalize(windows.obs).flatten(1)
    expected = cross_fitted(fit_mlp_prediction, condition, x, windows.episode).reshape(x.shape)
    arms = {label: (x, make_selector(name, **settings)) for label, (name, settings) in ARMS.items()}
    arms |= {f"{label}, residual": (x - expected, arms[label][1]) for label in FOR_RESIDUAL}
    audits, probes = {}, {}
    for label, (target, select) in arms.items():
        generator = torch_generator("cpu", "selectors", options["seed"])  # all meet the same batches
        sizes = {key: options[key] for key in ("batch_size", "batches")}
        result = audits[label] = audit(select, target, **sizes, condition=condition, generator=generator)
        rows = result.pairs.rows.flatten()
        probes[label] = probe(condition[rows], result.pairs.noise.flatten(0, 1), windows.episode[rows])
    share = explained(condition, x, windows.episode)
    selectors = {label: result.as_dict() | {"held_out": asdict(probes[label])} for label, result in audits.items()}
    figures = {"windows": len(x), "explained": asdict(share), "selectors": selectors}
    return Findings(figures, describe(audits, probes, share), draw(audits))


def describe(audits: dict[str, Audit], probes: dict[str, Probe], share: Explained) -> str:
    """The audits as a table, and whether selection can pay on this data."""
    first = next(iter(audits.values()))
    rows = [
        {"selector": label, "cells": [form.format(read(result)) for read, form in COLUMNS.values()]}
        | asdict(probes[label])
        for label, result in audits.items()
    ]
    columns = {"selector": "{selector}", **{title: f"{{cells[{i}]}}" for i, title in enumerate(COLUMNS)}}
    held_out = {
        "held out: prior shift": "{shift:.2f}",
        "variance": "{variance:.3f}",
        "spread": "{spread:.2f}",
        "harm at least [nats]": "{harm:.3f}",
    }
    return f"""\
{first.batches} batches of {first.batch_size} windows, {first.dims} numbers each. Plain noise of this size has a KS
below {first.ks.critical:.4f} in 95% of cases.

{table(columns | held_out, rows)}

Of the action's variance the observation explains {share.linear:.3f} by a linear fit and {share.mlp:.3f} by a small
network (R^2 on held-out episodes). {share.advice}"""


def draw(audits: dict[str, Audit]) -> Figure:
    """The audited figures of all selectors as bars that start at what plain noise has."""
    undrawn = ("KS", "KL at most [nats]")
    drawn = {title: column for title, column in COLUMNS.items() if title not in undrawn}
    figure = Figure(figsize=(14.5, 0.36 * len(audits) + 1.3), dpi=130, layout="constrained")
    axes, bar_colours = figure.subplots(1, len(drawn), sharey=True), [named(label) or GREY for label in audits]
    for panel, (title, (read, form)) in zip(axes, drawn.items(), strict=True):
        values = np.array([read(result) for result in audits.values()])
        plain(panel, title)
        bars = panel.barh(np.arange(len(values)), values - values[0], left=values[0], height=0.62, color=bar_colours)
        labels = [form.format(value) for value in values]  # the values, not the lengths of the bars
        panel.bar_label(bars, labels, padding=3, fontsize=7.5, color=GREY)
        panel.axvline(values[0], color=GREY, linewidth=1)
        panel.margins(x=0.3)
        panel.grid(visible=False)
    axes[0].set_yticks(np.arange(len(audits)), list(audits), fontsize=9)
    axes[0].invert_yaxis()
    return figure


OPTIONS = {
    "task": TASK,
    "data": DATA,
    "batch_size": Option(COUNT, 256, "windows per batch"),
    "batches": Option(COUNT, 32, "batches"),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
