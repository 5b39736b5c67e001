"""Finished runs as a committed result: curves, summary or paired comparison with its plot, and where they came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.evaluation.agent import Agent
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.evaluation.scores import scores
from immiscible_policy.evaluation.statistics import interval
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import read_config
from immiscible_policy.results.compare import compare, content, write_comparison
from immiscible_policy.results.writer import as_json, origin_here
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.store.run import SETTINGS_OF_PLACE, RunDirectory
from immiscible_policy.tasks import find_task

USAGE = """\
usage: python -m benchmarks study a=DIR [b=DIR|untrained=true] out=FILE.json

Turn a finished run, or two and their comparison, into a committed result: JSON with curves and origin; plot and text
of a comparison beside it.
"""
OPTIONS = {
    "a": Option(Path, REQUIRED, "run directory of arm A"),
    "b": Option(Path, None, "run directory of arm B"),
    "untrained": Option(bool, False, "also A's last checkpoints against its networks before training"),
    "out": Option(Path, REQUIRED, "JSON file"),
}


def run(words: list[str]) -> None:
    """Summarise or compare what command-line words name."""
    options = parse(words, OPTIONS, USAGE)
    origin = origin_here()
    write_atomically(options["out"], as_json(study(**options), origin))
    print(f"saved in {options['out']}")


def study(a: Path, b: Path | None, untrained: bool, out: Path) -> dict[str, Any]:
    """Summarise a run or compare two; a comparison's plot and text are written beside `out`.

    Args:
        a: Run directory of arm A.
        b: Run directory of arm B, or None for A alone.
        untrained: Whether to measure what training gained; of A alone.
        out: JSON file; the plot and the text go to a directory beside it, named like it without `.json`.

    Returns:
        The arms (settings, origin, means of every metric by checkpoint and seed) with A's summary or the comparison.
    """
    if out.suffix != ".json":
        raise ValueError(f"out={out}: name a file that ends in .json")
    if untrained and b is not None:
        raise ValueError("untrained=true: it belongs to A alone; leave b= out")
    runs = {name: RunDirectory(path) for name, path in (("a", a), ("b", b)) if path is not None}
    arms = {name: {"run": run.path.name, **_origin(run), "curves": _curves(run)} for name, run in runs.items()}
    if b is None:
        gained = {"gain": gain(runs["a"])} if untrained else {}
        return {"arms": arms, "summary": runs["a"].summary, **gained}
    comparison = compare(runs["a"], runs["b"])
    figures = json.dumps(content(comparison))
    for run in runs.values():
        figures = figures.replace(json.dumps(str(run.path)), json.dumps(run.path.name))
    beside = out.with_suffix("")
    write_comparison(beside, comparison, runs["a"], runs["b"])
    (beside / "comparison.json").unlink()  # it is in the file itself
    return {"arms": arms, "comparison": json.loads(figures)}


def gain(run: RunDirectory) -> dict[str, Any]:
    """How much better the last checkpoints are than their networks before training.

    Paired by training seed and start, with the same sampling noise; intervals of `evaluation.statistics`.

    Returns:
        By metric, `before` and `after` (means over seeds and starts) and `difference` with its interval.
    """
    config = read_config(run)
    recipe = RobotRecipe.prepare(config)
    after = scores(run.episodes())
    rows = {seed: _untrained_rows(recipe, seed) for seed in after}
    result = {}
    for metric in ("coverage", "reward"):
        last = np.stack([item.values[metric][-1] for item in after.values()])
        first = np.array([[row.metrics[metric] for row in rows[seed]] for seed in after])
        means = {"before": float(first.mean()), "after": float(last.mean())}
        result[metric] = means | {"difference": asdict(interval([last - first]))}
    return result


def _untrained_rows(recipe: RobotRecipe, seed: int) -> list[EpisodeRow]:
    """Episodes of a seed's network before its first step."""
    agent = Agent(recipe.policy(seed).eval(), recipe.spec, recipe.solver)
    return evaluate(find_task(**recipe.config.task), agent, recipe.starts, seed=seed, checkpoint=0)


def _origin(run: RunDirectory) -> dict[str, Any]:
    """Where a run came from and its settings, without the places where its files happened to lie."""
    settings = {key: value for key, value in run.config.items() if key not in SETTINGS_OF_PLACE | {"data"}}
    return {"origin": run.origin, "settings": settings}


def _curves(run: RunDirectory) -> dict[str, Any]:
    return {
        str(seed): {
            "steps": result.steps,
            **{name: result.values[name].mean(axis=1).tolist() for name in result.values},
        }
        for seed, result in scores(run.episodes()).items()
    }
