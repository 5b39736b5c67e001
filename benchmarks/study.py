"""Finished runs as a committed result: curves, summary or paired comparison with its plot, and where they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.evaluation.compare import SETTINGS_OF_PLACE, as_json, compare, write_comparison
from immiscible_policy.evaluation.rows import Run, read_run, write_atomically
from immiscible_policy.evaluation.summary import METRICS, scores
from immiscible_policy.provenance import provenance, without_places

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
    origin = provenance()
    figures = {**origin, "command": without_places(origin["command"]), **study(**options)}
    write_atomically(options["out"], (json.dumps(figures, indent=2) + "\n").encode())
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
    runs = {name: read_run(path) for name, path in (("a", a), ("b", b)) if path is not None}
    arms = {name: {"run": run.dir.name, **_origin(run), "curves": _curves(run)} for name, run in runs.items()}
    if b is None:
        return {"arms": arms, "summary": json.loads((a / "summary.json").read_text())}
    comparison = compare(runs["a"], runs["b"])
    figures = as_json(comparison)
    for run in runs.values():
        figures = figures.replace(json.dumps(str(run.dir)), json.dumps(run.dir.name))
    beside = out.with_suffix("")
    write_comparison(beside, comparison, runs["a"], runs["b"])
    (beside / "comparison.json").unlink()  # it is in the file itself
    return {"arms": arms, "comparison": json.loads(figures)}


def _origin(run: Run) -> dict[str, Any]:
    """Where a run came from and its settings, without the places where its files happened to lie."""
    origin = json.loads((run.dir / "provenance.json").read_text())
    origin["data"]["path"] = Path(origin["data"]["path"]).name
    origin["command"] = without_places(origin["command"])
    settings = {key: value for key, value in run.config.items() if key not in SETTINGS_OF_PLACE | {"data"}}
    return {"origin": origin, "settings": settings}


def _curves(run: Run) -> dict[str, Any]:
    return {
        str(seed): {"steps": found.steps, **{name: found.values[name].mean(axis=1).tolist() for name in METRICS}}
        for seed, found in scores(run.seeds).items()
    }
