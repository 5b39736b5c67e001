"""What every selector does to the noise of PushT action chunks: the audit of all of them, side by side."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.lab.data import DATA, SEED, pusht_windows
from immiscible_policy.lab.report import table
from immiscible_policy.noise import fit_potentials, make_selector
from immiscible_policy.noise.audit import Audit, audit
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab selectors [KEY=VALUE ...]

What every selector does to the noise of PushT action chunks, and to the noise that one observation meets.

The noise audit of each selector on the same windows: distance, law of the noise, how much of the noise the action and
the observation give away, what remains for the denoiser to guess, and time.

  python -m immiscible_policy.lab selectors
  python -m immiscible_policy.lab selectors data=STORE batches=32
"""
ARMS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("vanilla", "vanilla", {}),
    ("KNN k=2", "knn", {"k": 2}),
    ("KNN k=8", "knn", {"k": 8}),
    ("KNN k=2 by angle", "knn", {"k": 2, "nearest": "angle"}),
    ("KNN k=8 by angle", "knn", {"k": 8, "nearest": "angle"}),
    ("linear", "linear", {}),
    ("linear, pool of 4", "linear", {"pool": 4}),
    ("idp26", "idp26", {}),
    ("c2ot", "c2ot", {}),
    ("c2ot, ratio 0.2", "c2ot", {"ratio": 0.2}),
)
LEVEL = 0.9
"""alpha_bar at which the target variance is shown; the file has all of them."""


class Row(NamedTuple):
    """One selector.

    Attributes:
        label: Its name and options.
        audit: Its noise audit.
    """

    label: str
    audit: Audit


def measure(options: dict[str, Any]) -> Findings:
    """Audit all selectors on the windows of a store."""
    batch_size, batches = options["batch_size"], options["batches"]
    for key, least, most in (("batch_size", 4, 4096), ("batches", 2, 1000)):
        if not least <= options[key] <= most:
            raise CommandError(f"{key}={options[key]}: choose {least} to {most:,}")
    windows = pusht_windows(options["data"])
    x = Normalizer.fit(windows.action).normalize(windows.action)
    condition = Normalizer.fit(windows.obs).normalize(windows.obs).flatten(1)
    rows = []
    for label, name, settings in ARMS:
        if name == "linear" and "pool" not in settings:
            settings = settings | {"potentials": fit_potentials(x)}
        select = make_selector(name, **settings)
        generator = torch_generator("cpu", "selectors", options["seed"])  # all meet the same batches
        found = audit(select, x, batch_size=batch_size, batches=batches, condition=condition, generator=generator)
        rows.append(Row(label, found))
    figures = {
        "windows": len(x),
        "selectors": {row.label: row.audit.as_dict() for row in rows},
    }
    return Findings(figures, _text(rows), _picture(rows))


def _text(rows: list[Row]) -> str:
    header = ["selector", "distance [%]", "mean squared norm", "KS", "follows the action", "prior shift",
              f"left to guess at {LEVEL:g}", "time [ms]"]  # fmt: skip
    first = rows[0].audit
    cells = [
        [
            row.label,
            f"{row.audit.distance.percent:+.2f}",
            f"{row.audit.selected.squared_norm:.2f}",
            f"{row.audit.ks.statistic:.4f}",
            f"{row.audit.correlation.row_means:+.2f}",
            f"{row.audit.prior_shift:.2f}",
            f"{_target(row.audit):.4f}",
            f"{1e3 * row.audit.seconds:.2f}",
        ]
        for row in rows
    ]
    return f"""## What each selector does to the noise of PushT actions

{first.batches} batches of {first.batch_size} windows, {first.dims} numbers each; every selector meets the same batches.

- *Distance*: change of the mean Euclidean distance of sample and noise against plain noise.
- *Mean squared norm*: {first.dims} for N(0, I), which sampling starts from.
- *KS*: largest gap between the distribution of all numbers and N(0, 1); plain noise of this size stays below
  {first.ks.critical:.4f} in 95 % of cases.
- *Follows the action*: correlation between the mean of an action chunk and the mean of its noise.
- *Prior shift*: root mean square length of the mean noise that one observation meets, as far as it is linear in the
  observation; vanilla's tells the chance in the estimate. In sampling it is 0 for every observation: this is how far
  training and sampling part.
- *Left to guess*: variance of the noise given the noisy action at alpha_bar {LEVEL:g}, per number, at most: what
  miscibility costs the denoiser. For selectors that pair within a batch it speaks of one batch paired with itself.
- *Time*: median of one selection on the CPU, {torch.get_num_threads()} thread(s).

{table(header, cells)}

{textwrap.fill(_reading(rows), 120)}"""


def _reading(rows: list[Row]) -> str:
    """What assignment, KNN and c2ot change, in words and figures."""
    known = {row.label: row.audit for row in rows}
    plain, linear, knn, angle, c2ot = (known[label] for label in ("vanilla", "linear", "KNN k=2", "KNN k=2 by angle",
                                                                  "c2ot"))  # fmt: skip
    shorter = [f"{each.selected.squared_norm / each.vanilla.squared_norm - 1:+.1%}" for each in (knn, angle)]
    left = [f"{_target(each) / _target(plain):.0%}" for each in (linear, knn)]
    return (
        "**What it says.** Assignment deals out a batch's own noises, so their law stays, but the noise then follows "
        f"the action (correlation {linear.correlation.row_means:+.2f}) and, through it, the observation (prior shift "
        f"{linear.prior_shift:.2f}). Of what vanilla leaves to guess {left[0]} remains: the noise has told the rest. "
        f"KNN k=2 leaves {left[1]}, with correlation {knn.correlation.row_means:+.2f} and prior shift "
        f"{knn.prior_shift:.2f}, and changes the squared norm of the noise by {shorter[0]}; by angle, by {shorter[1]}. "
        f"c2ot compares the observations first: its prior shift is {c2ot.prior_shift:.2f}, its gain in distance "
        f"{c2ot.distance.percent:+.2f} % instead of linear's {linear.distance.percent:+.2f} %."
    )


def _target(found: Audit) -> float:
    return found.target.selected[found.target.alpha_bars.index(LEVEL)]


def _picture(rows: list[Row]) -> Figure:
    plain = rows[0].audit
    columns = (
        ("distance to the sample, change [%]", [row.audit.distance.percent for row in rows], 0.0, "+.2f"),
        (
            f"mean squared norm (N(0, I): {plain.dims})",
            [row.audit.selected.squared_norm for row in rows],
            plain.dims,
            ".1f",
        ),
        ("correlation with the action", [row.audit.correlation.row_means for row in rows], 0.0, ".2f"),
        ("prior shift given the observation", [row.audit.prior_shift or 0.0 for row in rows], 0.0, ".2f"),
        (f"left to guess at alpha_bar {LEVEL:g}", [_target(row.audit) for row in rows], _target(plain), ".4f"),
    )
    figure = Figure(figsize=(14.5, 0.36 * len(rows) + 1.3), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for axes, (title, values, reference, form) in zip(panels, columns, strict=True):
        _bars(axes, title, values, float(reference), form)
    panels[0].set_yticks(np.arange(len(rows)), [row.label for row in rows], fontsize=9)
    panels[0].invert_yaxis()
    return figure


def _bars(axes: Axes, title: str, values: list[float], reference: float, form: str) -> None:
    """One quantity of all selectors as bars that start at what plain noise has, its values written beside them."""
    places = np.arange(len(values))
    axes.barh(places, np.asarray(values) - reference, left=reference, height=0.62, color=COLOURS[0])
    axes.axvline(reference, color=GREY, linewidth=1)
    low, high = min(*values, reference), max(*values, reference)
    room = 0.30 * (high - low)
    left = low - (room if low < reference else 0.03 * room)
    axes.set_xlim(left if low < 0 or left > 0 else 0, high + (room if high > reference else 0.03 * room))
    for place, value in enumerate(values):
        outside = value >= reference or value - 0.6 * room > axes.get_xlim()[0]
        side = "right" if value < reference and outside else "left"
        axes.annotate(
            format(value, form),
            (value, place),
            xytext=(-3 if side == "right" else 3, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7.5,
            color=GREY if outside else "white",
        )
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.tick_params(labelsize=8, left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "data": DATA,
        "batch_size": Option(int, 256, "windows per batch"),
        "batches": Option(int, 32, "batches"),
        "seed": SEED,
    },
)
