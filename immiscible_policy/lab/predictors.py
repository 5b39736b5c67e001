"""Which figure of the first minutes foretells how a training ends? The arms of a grid, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from immiscible_policy.cli import REQUIRED, CommandError, Option
from immiscible_policy.evaluation.agent import load_policy
from immiscible_policy.evaluation.scores import scores
from immiscible_policy.lab.bijection import start_noise_figures
from immiscible_policy.lab.data import DATA, SEED, pusht_windows
from immiscible_policy.palette import COLOURS, panels
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, runs_in

USAGE = """\
usage: python -m immiscible_policy.lab predictors grid=DIR [KEY=VALUE ...]

Orders the arms of a grid by figures of their first minutes, and by their coverage at the end.

Three kinds of figures: the noise audit, which needs no training; the curves up to early= steps; and how far the early
checkpoint follows its start noise (as in bijection). For each, Spearman's rank correlation with the coverage of the
last checkpoint over the arms, with a bootstrap interval (arms drawn with replacement).

  python -m immiscible_policy.lab predictors grid=runs/when data=STORE early=500
"""
OPTIONS = {
    "grid": Option(Path, REQUIRED, "directory of the grid, a run directory for each arm"),
    "data": DATA,
    "early": Option(int, 500, "training step of the early checkpoint"),
    "windows": Option(int, 1024, "windows on which action and start noise are compared"),
    "seed": SEED,
}
AUDIT = {
    "noise/correlation": "audit: correlation with the action",
    "noise/prior_shift": "audit: prior shift",
    "noise/distance_percent": "audit: change of the distance [%]",
    "noise/squared_norm": "audit: mean squared norm",
}
EARLY = {
    "loss": "training loss",
    "coverage": "coverage",
    "correlation": "chunk's correlation with its start noise",
    "rmse_random": "error from random start noise [px]",
    "assigned_gain": "share of that error that assigned start noise removes",
}
RESAMPLES = 4000
Document = dict[str, Any]


def measure(options: Document) -> Findings:
    """Read the arms, measure their early checkpoints, and order them.

    Raises:
        ValueError: If an option is unusable, or fewer than four arms can be read.
    """
    found = arms_of(options["grid"], options["early"])
    windows = early_windows(next(iter(found.values())), options)
    arms = {}
    for arm, checkpoints in found.items():
        arms[arm] = arm_figures(options["grid"] / arm, checkpoints, options["early"], windows, options["seed"])
        print(f"{arm}  coverage {arms[arm]['final']:.3f}", flush=True)
    figures = {
        "early": options["early"],
        "arms": arms,
        "rank_correlation": {key: rank_correlation(arms, key, options["seed"]) for key in (*AUDIT, *EARLY)},
    }
    return Findings(figures, describe(figures), draw(figures))


def arms_of(grid: Path, early: int) -> dict[str, list[Checkpoint]]:
    """The early checkpoints of every seed of every arm that was trained to its end.

    Raises:
        CommandError: If there are fewer than four such arms, or an arm keeps no checkpoint of that step.
    """
    arms: dict[str, list[Checkpoint]] = {}
    for run in runs_in(grid):
        if not run.is_finished():
            continue  # still in training
        kept = [checkpoint for of_seed in run.checkpoints().values() for checkpoint in of_seed]
        arms[run.name] = [checkpoint for checkpoint in kept if checkpoint.step == early]
        if not arms[run.name]:
            steps = sorted({checkpoint.step for checkpoint in kept})
            raise CommandError(f"early={early}: {run.path} keeps steps {', '.join(map(str, steps))}")
    if len(arms) < 4:
        raise CommandError(f"grid={grid}: {len(arms)} finished arms there; an order needs four or more")
    return arms


def early_windows(checkpoints: Sequence[Checkpoint], options: Document) -> Any:
    """Windows of the demonstrations, drawn by the seed.

    Raises:
        CommandError: If there are not as many.
    """
    _, spec = load_policy(checkpoints[0])
    windows = pusht_windows(options["data"], spec)
    if not 2 <= options["windows"] <= len(windows):
        raise CommandError(f"windows={options['windows']}: use 2 to {len(windows)}, as many as the demonstrations have")
    order = torch.randperm(len(windows), generator=torch_generator("cpu", "foretell windows", options["seed"]))
    return windows[order[: options["windows"]]]


def arm_figures(run: Path, checkpoints: Sequence[Checkpoint], early: int, windows: Any, seed: int) -> Document:
    """An arm's figures of the first minutes, and its coverage at the end, means over its seeds."""
    directory = RunDirectory(run)
    rows = [directory.seed(number).metrics() for number in directory.seeds()]
    of_noise = [start_noise_figures(load_policy(c)[0], windows, Solver("ddim", 10), seed) for c in checkpoints]
    evaluated = list(scores(directory.episodes()).values())
    curves, steps = [found.values["coverage"].mean(axis=1) for found in evaluated], evaluated[0].steps
    return {
        **{key: _audited(rows, key) for key in AUDIT},
        "loss": mean(_at(of_seed, "loss", early) for of_seed in rows),
        "coverage": mean(float(curve[steps.index(early)]) for curve in curves),
        "correlation": mean(each["correlation"] for each in of_noise),
        "rmse_random": mean(each["rmse_random"] for each in of_noise),
        "assigned_gain": mean(1 - each["rmse_assigned"] / each["rmse_random"] for each in of_noise),
        "final": mean(float(curve[-1]) for curve in curves),
        "seeds": len(curves),
    }


def rank_correlation(arms: Mapping[str, Document], key: str, seed: int) -> Document:
    """Spearman's correlation of a figure with the coverage at the end, over arms, with its bootstrap interval.

    Args:
        arms: Figures of each arm.
        key: Which of them; arms without it are left out.
        seed: Seed of the bootstrap.

    Returns:
        `rho`, `low`, `high`, and the number of `arms`; nothing but the number where fewer than four have the figure, or
        all have the same.
    """
    pairs = np.array([(each[key], each["final"]) for each in arms.values() if each[key] is not None])
    if len(pairs) < 4 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return {"arms": len(pairs)}
    rng = np.random.default_rng(derive_seed("foretell", seed))
    drawn = (pairs[rng.integers(len(pairs), size=len(pairs))] for _ in range(RESAMPLES))
    rhos = [_spearman(sample) for sample in drawn if np.ptp(sample[:, 0]) and np.ptp(sample[:, 1])]
    low, high = np.percentile(rhos, [2.5, 97.5])
    return {"rho": _spearman(pairs), "low": float(low), "high": float(high), "arms": len(pairs)}


def _spearman(pairs: np.ndarray) -> float:
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def _at(rows: Sequence[Document], key: str, step: int) -> float:
    """A logged figure, at the last row up to a step that has it."""
    return next(float(row[key]) for row in reversed(rows) if row["step"] <= step and row.get(key) is not None)


def _audited(rows: Sequence[Sequence[Document]], key: str) -> float | None:
    """An audited figure with the selector at its strongest, whenever its schedule has that; mean over seeds."""
    strongest = [max((row for row in of_seed if row.get("noise/correlation") is not None),
                     key=lambda row: abs(row["noise/correlation"]), default={}) for of_seed in rows]  # fmt: skip
    values = [row[key] for row in strongest if row.get(key) is not None]
    return mean(values) if len(values) == len(rows) else None


def describe(figures: Document) -> str:
    """The findings as Markdown."""
    names = AUDIT | {key: f"step {figures['early']}: {text}" for key, text in EARLY.items()}
    ranks = [[names[key], *_rank_cells(found)] for key, found in figures["rank_correlation"].items()]
    ordered = sorted(figures["arms"].items(), key=lambda item: -item[1]["final"])
    rows = [[arm, f"{each['final']:.3f}", *(_number(each[key]) for key in names)] for arm, each in ordered]
    return f"""\
## What foretells the coverage at the end

Rank correlation (Spearman) over the arms of a grid between a figure of the first minutes and the coverage of the last
checkpoint, with 95 % intervals from arms drawn with replacement. The audit is taken where a schedule has its selector
at its strongest and needs no training. An interval that holds 0 foretells nothing.

{table(["figure", "rank correlation", "arms"], ranks)}

{table(["arm", "coverage at the end", *names.values()], rows)}
"""


def _rank_cells(found: Document) -> list[str]:
    if "rho" not in found:
        return ["", str(found["arms"])]
    return [f"{found['rho']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]", str(found["arms"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def draw(figures: Document) -> Figure:
    """A panel for each figure: the arms, their coverage at the end against it."""
    names = AUDIT | {key: f"step {figures['early']}: {text}" for key, text in EARLY.items()}
    figure, axes = panels(3, -(-len(names) // 3), title="each dot an arm of the grid, mean over seeds")
    for panel, (key, text) in zip(axes, names.items(), strict=False):
        for arm, each in figures["arms"].items():
            if each[key] is None:
                continue
            panel.scatter(each[key], each["final"], s=18, color=COLOURS[0])
            panel.annotate(arm, (each[key], each["final"]), fontsize=6, xytext=(3, 3), textcoords="offset points")
        panel.set(xlabel=text, ylabel="coverage at the end", ylim=(0, 1))
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    return figure


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
