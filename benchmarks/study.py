"""Finished runs as a committed result: curves, summary or paired comparison with its plot, and where they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.evaluation.scores import scores
from immiscible_policy.results.compare import compare, content, write_comparison
from immiscible_policy.results.writer import as_json, origin_here
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.run import SETTINGS_OF_PLACE, RunDirectory

USAGE = """\
usage: python -m benchmarks study a=DIR [b=DIR] out=FILE.json

Turn a finished run, or two and their comparison, into a committed result: JSON with curves and origin; plot and text
of a comparison beside it.
"""
OPTIONS = {
    "a": Option(Path, REQUIRED, "run directory of arm A"),
    "b": Option(Path, None, "run directory of arm B"),
    "out": Option(Path, REQUIRED, "JSON file"),
}


def run(words: list[str]) -> None:
    """Summarise or compare what command-line words name."""
    options = parse(words, OPTIONS, USAGE)
    origin = origin_here()
    write_atomically(options["out"], as_json(study(**options), origin))
    print(f"saved in {options['out']}")


def study(a: Path, b: Path | None, out: Path) -> dict[str, Any]:
    """Summarise a run or compare two; a comparison's plot and text are written beside `out`.

    Args:
        a: Run directory of arm A.
        b: Run directory of arm B, or None for A alone.
        out: JSON file; the plot and the text go to a directory beside it, named like it without `.json`.

    Returns:
        The arms (settings, origin, means of every metric by checkpoint and seed) with A's summary or the comparison.
    """
    if out.suffix != ".json":
        raise ValueError(f"out={out}: name a file that ends in .json")
    runs = {name: RunDirectory(path) for name, path in (("a", a), ("b", b)) if path is not None}
    arms = {name: {"run": run.path.name, **_origin(run), "curves": _curves(run)} for name, run in runs.items()}
    if b is None:
        return {"arms": arms, "summary": runs["a"].summary}
    comparison = compare(runs["a"], runs["b"])
    figures = json.dumps(content(comparison))
    for run in runs.values():
        figures = figures.replace(json.dumps(str(run.path)), json.dumps(run.path.name))
    beside = out.with_suffix("")
    write_comparison(beside, comparison, runs["a"], runs["b"])
    (beside / "comparison.json").unlink()  # it is in the file itself
    return {"arms": arms, "comparison": json.loads(figures)}


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
