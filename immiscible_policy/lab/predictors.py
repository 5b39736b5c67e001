"""Do early measurements of a grid's arms predict their final scores? Rank correlations.

Three kinds of figures: the noise audit, which needs no training (taken where a schedule has its selector at its
strongest); the curves up to early= steps; and how far the early checkpoint follows its start noise (as in
`bijection`). For each, Spearman's rank correlation over the arms with the score of the last checkpoint, with a 95 %
bootstrap interval (arms drawn with replacement). The score is the task's primary metric, a mean over training seeds
and starts.

  python -m immiscible_policy.lab predictors grid=runs/when data=STORE early=500
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option
from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import read_policy
from immiscible_policy.evaluation.scores import scores
from immiscible_policy.lab.bijection import start_noise_figures
from immiscible_policy.lab.data import DATA, SEED
from immiscible_policy.lab.program import Document, plain, program, require, table
from immiscible_policy.lab.runs import drawn_windows
from immiscible_policy.palette import GREY, INK, NAMED, panels, readable
from immiscible_policy.randomness import derive_seed
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, runs_in

AUDIT = {
    "noise/correlation": "audit: correlation with the action",
    "noise/prior_shift": "audit: prior shift",
    "noise/distance_percent": "audit: change of the distance [%]",
    "noise/squared_norm": "audit: mean squared norm",
}
EARLY = {
    "loss": "early: training loss",
    "coverage": "early: score",
    "correlation": "early: chunk's correlation with its start noise",
    "rmse_random": "early: error from random start noise",
    "assigned_gain": "early: share of that error that assigned start noise removes",
}
PREDICTORS = AUDIT | EARLY
RESAMPLES = 4000


def measure(options: Document) -> Findings:
    """Read the arms, measure their early checkpoints, and order them."""
    require(options, windows=(2, np.inf))
    early, seed = options["early"], options["seed"]
    checkpoints = early_checkpoints(options["grid"], early)
    first = next(iter(checkpoints.values()))[0]
    windows, _ = drawn_windows(first, options["data"], options["windows"], seed, key="windows")
    arms = {}
    for arm, by_seed in checkpoints.items():
        arms[arm] = arm_figures(RunDirectory(options["grid"] / arm), by_seed, early, windows, seed)
        print(f"{arm}  score {arms[arm]['final']:.3f}", flush=True)
    correlations = {key: rank_correlation(arms, key, seed) for key in PREDICTORS}
    figures = {"early": early, "arms": arms, "rank_correlation": correlations}
    return Findings(figures, describe(figures), draw(figures))


def early_checkpoints(grid: Path, early: int) -> dict[str, list[Checkpoint]]:
    """The early checkpoints of every seed of every arm that was trained to its end.

    CommandError for fewer than four such arms, or an arm without a checkpoint of that step.
    """
    arms: dict[str, list[Checkpoint]] = {}
    for run in runs_in(grid):
        if not run.is_finished():
            continue  # still in training
        kept = [checkpoint for checkpoints in run.checkpoints().values() for checkpoint in checkpoints]
        arms[run.name] = [checkpoint for checkpoint in kept if checkpoint.step == early]
        if not arms[run.name]:
            steps = sorted({checkpoint.step for checkpoint in kept})
            raise CommandError(f"early={early}: {run.path} keeps steps {', '.join(map(str, steps))}")
    if len(arms) < 4:
        raise CommandError(f"grid={grid}: {len(arms)} finished arms there; an order needs four or more")
    return arms


def arm_figures(
    run: RunDirectory, checkpoints: Sequence[Checkpoint], early: int, windows: Windows, seed: int
) -> Document:
    """An arm's figures of the first minutes, and its score at the end (`final`), means over its seeds."""
    logged = [run.seed(number).metrics() for number in run.seeds()]
    followed = [start_noise_figures(read_policy(c)[0], windows, Solver("ddim", 10), seed) for c in checkpoints]
    evaluated = list(scores(run.episodes()).values())
    curves, steps = [result.values["coverage"].mean(axis=1) for result in evaluated], evaluated[0].steps
    losses = ([row["loss"] for row in rows if row["step"] <= early and row.get("loss") is not None] for rows in logged)
    return {
        **{key: _audited(logged, key) for key in AUDIT},
        "loss": mean(float(values[-1]) for values in losses),
        "coverage": mean(float(curve[steps.index(early)]) for curve in curves),
        **{key: mean(result[key] for result in followed) for key in ("correlation", "rmse_random")},
        "assigned_gain": mean(1 - result["rmse_assigned"] / result["rmse_random"] for result in followed),
        "final": mean(float(curve[-1]) for curve in curves),
        "seeds": len(curves),
    }


def _audited(logged: Sequence[Sequence[Document]], key: str) -> float | None:
    """An audited figure with the selector at its strongest, whenever its schedule has that; mean over seeds."""
    audited = ([row for row in rows if row.get("noise/correlation") is not None] for rows in logged)
    strongest = [max(rows, key=lambda row: abs(row["noise/correlation"]), default={}) for rows in audited]
    values = [row[key] for row in strongest if row.get(key) is not None]
    return mean(values) if len(values) == len(logged) else None


def rank_correlation(arms: Mapping[str, Document], key: str, seed: int) -> Document:
    """Spearman's correlation `rho` of a figure with the score at the end, with its bootstrap interval `low`, `high`.

    Over the `arms` that have the figure; their number alone where they are fewer than four, or all have the same.
    """

    def spearman(pairs: np.ndarray) -> float:
        return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)

    pairs = np.array([(figures[key], figures["final"]) for figures in arms.values() if figures[key] is not None])
    if len(pairs) < 4 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return {"arms": len(pairs)}
    rng = np.random.default_rng(derive_seed("predictors", seed))
    drawn = (pairs[rng.integers(len(pairs), size=len(pairs))] for _ in range(RESAMPLES))
    low, high = np.percentile([spearman(s) for s in drawn if np.ptp(s[:, 0]) and np.ptp(s[:, 1])], [2.5, 97.5])
    return {"rho": spearman(pairs), "low": float(low), "high": float(high), "arms": len(pairs)}


def describe(figures: Document) -> str:
    """The rank correlations, and the figures of every arm."""
    ranks = [
        {"figure": PREDICTORS[key], "rank": result | {"mean": result["rho"]} if "rho" in result else None, **result}
        for key, result in figures["rank_correlation"].items()
    ]
    columns = {"figure": "{figure}", "rank correlation": "{rank:+.2f}", "arms": "{arms}"}
    rows = [{"arm": arm, **result} for arm, result in figures["arms"].items()]
    by_arm = {"arm": "{arm}", "score at the end": "{final:.3f}"}
    by_arm |= {title: f"{{{key}:.3f}}" for key, title in PREDICTORS.items()}
    return f"""\
early = {figures["early"]:,} steps.

{table(columns, ranks)}

{table(by_arm, sorted(rows, key=lambda row: -row["final"]))}"""


def draw(figures: Document) -> Figure:
    """A panel for each figure: the arms, their score at the end against it."""
    figure, axes = panels(3, -(-len(PREDICTORS) // 3), title="each dot an arm of the grid, mean over seeds")
    for panel, (key, title) in zip(axes, PREDICTORS.items(), strict=False):
        plain(panel, xlabel=title, ylabel="score at the end")
        panel.set_ylim(0, 1)
        for arm, result in figures["arms"].items():
            if result[key] is not None:
                own = next((NAMED[word] for word in arm.split("_") if word in NAMED), INK)
                panel.scatter(result[key], result["final"], s=24, color=own, alpha=0.8, linewidths=0)
        rank = figures["rank_correlation"][key].get("rho")
        if rank is not None:
            panel.set_title(f"rank correlation {rank:+.2f}", fontsize=9, loc="right", color=GREY)
    selectors = [name for name in NAMED if any(name in arm.split("_") for arm in figures["arms"])]
    handles = [Line2D([], [], color=NAMED[name], marker="o", linestyle="", label=readable(name)) for name in selectors]
    handles.append(Line2D([], [], color=INK, marker="o", linestyle="", label="other"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


OPTIONS = {
    "grid": Option(Path, REQUIRED, "directory of the grid, a run directory for each arm"),
    "data": DATA,
    "early": Option(COUNT, 500, "training step of the early checkpoint"),
    "windows": Option(COUNT, 1024, "windows on which action and start noise are compared"),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
