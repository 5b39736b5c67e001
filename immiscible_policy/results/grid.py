"""The table of a grid of runs: every arm's scores, and its paired difference from the first arm.

For coverage and reward, per training seed and pooled: mean of the last ten checkpoints, the last one, and the largest,
as `summary` defines them; differences and their intervals as `compare` does. Steps and seconds to a share of the first
arm's maximum are those of the first evaluated checkpoint that reaches it; seconds count training alone. What selection
did to the noise is the audit of the last evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.evaluation.statistics import Array, Interval, difference_arms, interval, mean_interval
from immiscible_policy.palette import COLOURS
from immiscible_policy.provenance import provenance, run_origin, without_places
from immiscible_policy.results.plots import arms_figure, learning_curves
from immiscible_policy.results.summary import Scores, scores
from immiscible_policy.results.text import table
from immiscible_policy.results.writer import finite, save_figure
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.rows import Run, read_run

PUBLISHED = {
    "table2": {
        "vanilla": {"last10": 0.7956, "max": 0.8571},
        "knn_k2": {"last10": 0.8283, "max": 0.8674},
    }
}
"""Improved Immiscible Diffusion (arXiv 2505.18521), Table 2: "average area coverage", 3,000 epochs, 3 seeds."""
SHARES = (0.80, 0.90, 0.95)
AUDIT = ("noise/distance_percent", "noise/correlation", "noise/prior_shift", "noise/squared_norm")
METRICS = ("coverage", "reward")
KINDS = ("last10", "last", "max")

Figures = dict[str, Any]


def write_grid(out: Path, name: str, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """Write `NAME.json`, `NAME.md` and `NAME.png` of a grid.

    Args:
        out: Directory of all arms.
        name: The grid's name.
        arms: Its arms, as directories below `out`; the first is what the others are compared with.
        seeds: The training seeds that every arm should have.

    Returns:
        The table as Markdown. An arm that lacks seeds or checkpoints is called incomplete, and not pooled.
    """
    runs = {arm: read_run(out / arm) for arm in arms if list((out / arm).glob("seed_*/episodes.csv"))}
    whole = {arm: run for arm, run in runs.items() if not missing_seeds(run, seeds)}
    origin = provenance()
    figures = {
        **origin,
        "command": without_places(origin["command"]),
        "arms": {
            arm: _arm(whole[arm], whole.get(arms[0]), seeds)
            if arm in whole
            else {"missing_seeds": missing_seeds(runs.get(arm), seeds)}
            for arm in arms
        },
        "compared_with": arms[0],
        "published": PUBLISHED.get(name, {}),
    }
    text = markdown(name, figures)
    write_atomically(out / f"{name}.json", (json.dumps(finite(figures), indent=2, allow_nan=False) + "\n").encode())
    write_atomically(out / f"{name}.md", text.encode())
    if whole:
        save_figure(_picture({arm: _scores(run, seeds) for arm, run in whole.items()}, arms[0]), out / f"{name}.png")
    return text


def _picture(found: Mapping[str, Mapping[int, Scores]], first: str) -> Figure:
    """Learning curves of a few arms; of more than there are colours, their scores and differences."""
    if len(found) <= len(COLOURS) or first not in found:
        return learning_curves(dict(list(found.items())[: len(COLOURS)]))
    return arms_figure(
        {arm: [float(row.mean()) for row in _readings(each, "coverage", "last")] for arm, each in found.items()},
        {arm: _pooled(each, "coverage", "last") for arm, each in found.items()},
        {arm: _difference(each, found[first], "coverage", "last") for arm, each in found.items() if arm != first},
        "coverage, last checkpoint",
        first,
    )


def missing_seeds(run: Run | None, seeds: Sequence[int]) -> list[int]:
    """The seeds that have not been evaluated to the end of their training."""
    if run is None:
        return list(seeds)
    found = scores(run.seeds)
    return [seed for seed in seeds if seed not in found or found[seed].steps[-1] < run.config["steps"]]


def _arm(run: Run, first: Run | None, seeds: Sequence[int]) -> Figures:
    """The figures of a complete arm; what needs the first arm only if that is complete too."""
    found = _scores(run, seeds)
    figures: Figures = {
        "missing_seeds": [],
        "origin": run_origin(run.dir),
        "steps": run.config["steps"],
        "scores": {metric: {kind: _interval(_pooled(found, metric, kind)) for kind in KINDS} for metric in METRICS},
        "seeds": {str(seed): _means(each) for seed, each in found.items()},
        "noise": _last_audit(run.dir, seeds),
        "curve": _curve(found, None if first is None or first is run else _scores(first, seeds)),
    }
    if first is not None:
        figures["to_quality"] = _to_quality(run, found, scores(first.seeds))
        if first is not run:
            figures["difference"] = _differences(found, _scores(first, seeds))
    return figures


def _scores(run: Run, seeds: Sequence[int]) -> dict[int, Scores]:
    """The scores of the grid's seeds."""
    return {seed: of_seed for seed, of_seed in scores(run.seeds).items() if seed in seeds}


def _means(found: Scores) -> Figures:
    return {metric: {kind: float(_reading(found, metric, kind).mean()) for kind in KINDS} for metric in METRICS}


def _curve(found: Mapping[int, Scores], first: Mapping[int, Scores] | None) -> list[Figures]:
    """Coverage at every evaluated step that all seeds share, and its paired difference from the first arm's."""
    steps = sorted(set.intersection(*(set(each.steps) for each in (*found.values(), *(first or {}).values()))))
    curve: list[Figures] = []
    for step in steps:
        own = _at(found, step)
        curve.append({"step": step, "coverage": _interval(mean_interval(own))})
        if first is not None:
            arms = difference_arms(own, _at(first, step), same_seeds=True)
            curve[-1]["difference"] = _interval(interval(arms))
    return curve


def _at(found: Mapping[int, Scores], step: int) -> Array:
    """Coverage at a step (seeds, starts)."""
    return np.stack([each.at([step], each.starts).values["coverage"][0] for each in found.values()])


def _pooled(found: Mapping[int, Scores], metric: str, kind: str) -> Interval:
    return mean_interval(_readings(found, metric, kind))


def _readings(found: Mapping[int, Scores], metric: str, kind: str) -> Array:
    """Scores of one kind (seeds, starts)."""
    return np.stack([_reading(each, metric, kind) for each in found.values()])


def _reading(found: Scores, metric: str, kind: str) -> Array:
    if kind == "last":
        return found.values[metric][-1]
    return found.last10(metric) if kind == "last10" else found.best(metric)[1]


def _differences(found: Mapping[int, Scores], first: Mapping[int, Scores]) -> Figures:
    return {metric: {kind: _interval(_difference(found, first, metric, kind)) for kind in KINDS} for metric in METRICS}


def _difference(found: Mapping[int, Scores], first: Mapping[int, Scores], metric: str, kind: str) -> Interval:
    """Paired by seed and start: the runs of a grid have the same of both."""
    arms = difference_arms(_readings(found, metric, kind), _readings(first, metric, kind), same_seeds=True)
    return interval(arms)


def _interval(found: Interval) -> Figures:
    return {"mean": found.estimate, "low": found.low, "high": found.high, "over": found.over}


def _to_quality(run: Run, found: Mapping[int, Scores], first: Mapping[int, Scores]) -> Figures:
    """Steps and seconds of each seed to shares of the first arm's maximum, its best mean coverage over seeds.

    None where no evaluated checkpoint reaches it.
    """
    curves = [each.values["coverage"].mean(axis=1) for each in first.values()]
    best = float(np.mean(curves, axis=0).max()) if len({len(each) for each in curves}) == 1 else math.nan
    reached: Figures = {}
    for share in SHARES:
        steps = {seed: _first_step(each, share * best) for seed, each in found.items()}
        reached[f"{share:.2f}"] = {
            "coverage": share * best,
            "steps": {str(seed): step for seed, step in steps.items()},
            "seconds": {str(seed): _seconds(run.dir, seed, step) for seed, step in steps.items()},
        }
    return reached


def _first_step(found: Scores, coverage: float) -> int | None:
    means = found.values["coverage"].mean(axis=1)
    return next((step for step, mean in zip(found.steps, means, strict=True) if mean >= coverage), None)


def _seconds(run: Path, seed: int, step: int | None) -> float | None:
    """Seconds of training up to a step."""
    if step is None:
        return None
    rows = _metrics(run / f"seed_{seed}")
    return round(sum(row["seconds"] for row in rows if "seconds" in row and row["step"] <= step), 1)


def _last_audit(run: Path, seeds: Sequence[int]) -> dict[str, float]:
    """What selection did to the noise at the last evaluation, mean over seeds; nothing where it is not known."""
    audits = [row for seed in seeds for row in _metrics(run / f"seed_{seed}") if "noise/correlation" in row]
    audits = [row for row in audits if row["step"] == audits[-1]["step"]]
    known = [key for key in AUDIT if audits and all(row.get(key) is not None for row in audits)]
    return {key: float(np.mean([row[key] for row in audits])) for key in known}


def _metrics(seed_directory: Path) -> list[dict[str, Any]]:
    path = seed_directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def markdown(name: str, figures: Figures) -> str:
    """The table of a grid as text.

    Args:
        name: Its title.
        figures: What `write_grid` puts into JSON.
    """
    first, arms, published = figures["compared_with"], figures["arms"], figures["published"]
    complete = {arm: each for arm, each in arms.items() if not each["missing_seeds"]}
    lines = [f"# {name}", "", *_notes(arms, first)]
    for metric in METRICS:
        lines += ["", *_score_table(metric, arms, complete, first, published)]
    if complete:
        lines += ["", *_seed_table(complete)]
    if first in complete:
        lines += ["", *_quality_table(complete, first)]
    if any(each["noise"] for each in complete.values()):
        lines += ["", *_noise_table(complete)]
    return "\n".join(lines) + "\n"


def _notes(arms: Figures, first: str) -> list[str]:
    notes = [
        "`last10`: mean of the last ten evaluated checkpoints (of all where there are fewer); `last`: the last of "
        "them; `max`: the largest, "
        "chosen on the same starts and so flattered. Brackets: 95 % intervals for new training seeds and new starts. "
        f"Differences are paired by seed and start with {first}."
    ]
    for arm, each in arms.items():
        if each["missing_seeds"]:
            notes += ["", f"**{arm} is incomplete**: seeds {', '.join(map(str, each['missing_seeds']))} are missing or "
                      "not trained to the end; it is not pooled."]  # fmt: skip
    return notes


def _score_table(metric: str, arms: Figures, complete: Figures, first: str, published: Figures) -> list[str]:
    header = [metric, *KINDS, *(f"{kind} - {first}" for kind in KINDS)]
    if published:
        header.append("published last10, max" if metric == "coverage" else "published / 0.95")
    rows = []
    for arm in arms:
        each = complete.get(arm)
        cells = ["incomplete"] * 2 * len(KINDS) if each is None else _cells(each, metric)
        if published:
            cells.append(_published(published.get(arm), 1.0 if metric == "coverage" else 0.95))
        rows.append([arm, *cells])
    return table(header, rows)


def _cells(arm: Figures, metric: str) -> list[str]:
    """Scores, then differences from the first arm, which has none."""
    own = [cell(arm["scores"][metric][kind]) for kind in KINDS]
    if "difference" not in arm:
        return own + [""] * len(KINDS)
    return own + [cell(arm["difference"][metric][kind], signed=True) for kind in KINDS]


def _published(found: dict[str, float] | None, unit: float) -> str:
    """The published pair; whether it is coverage, or reward times 0.95, the paper leaves open."""
    return "" if found is None else ", ".join(f"{found[kind] / unit:.3f}" for kind in ("last10", "max"))


def _seed_table(complete: Figures) -> list[str]:
    header = ["per seed", *(f"{metric}, {kind}" for metric in METRICS for kind in KINDS)]
    rows = [
        [f"{arm}, seed {seed}", *(f"{found[metric][kind]:.3f}" for metric in METRICS for kind in KINDS)]
        for arm, each in complete.items()
        for seed, found in each["seeds"].items()
    ]
    return table(header, rows)


def _quality_table(complete: Figures, first: str) -> list[str]:
    header = ["steps (seconds) to", *(f"{share:.2f} of {first}'s maximum" for share in SHARES)]
    rows = []
    for arm, each in complete.items():
        cells = []
        for share in SHARES:
            found = each["to_quality"][f"{share:.2f}"]
            pairs = zip(found["steps"].values(), found["seconds"].values(), strict=True)
            cells.append(", ".join("never" if step is None else f"{step:,} ({took:,.0f} s)" for step, took in pairs))
        rows.append([arm, *cells])
    return table(header, rows)


def _noise_table(complete: Figures) -> list[str]:
    keys = list(dict.fromkeys(key for each in complete.values() for key in each["noise"]))
    names = [key.removeprefix("noise/").replace("_", " ") for key in keys]
    rows = [
        [arm, *(f"{each['noise'][key]:.3f}" if key in each["noise"] else "" for key in keys)]
        for arm, each in complete.items()
    ]
    return table(["noise audit", *names], rows)


def cell(found: Figures, signed: bool = False) -> str:
    """A figure and its interval, if it has one, as they stand in the tables."""
    number = "{:+.3f}" if signed else "{:.3f}"
    ends = "" if math.isnan(found["low"]) else f" [{number.format(found['low'])}, {number.format(found['high'])}]"
    return number.format(found["mean"]) + ends
