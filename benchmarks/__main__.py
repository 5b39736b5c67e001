"""`python -m benchmarks step|selection|study`: measure, print, and write JSON with its origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, run, unknown
from immiscible_policy.evaluation.rows import write_atomically
from immiscible_policy.provenance import provenance, without_places

RESULTS = Path(__file__).resolve().parent / "results"

STEP_USAGE = """\
usage: python -m benchmarks step [KEY=VALUE ...]

Time the training step of every selector beside the bare network's, in alternation.

  python -m benchmarks step
  python -m benchmarks step precision=fp32 threads=1 out=/tmp/step.json
"""
STEP = {
    "blocks": Option(int, 10, "alternations between the two sides"),
    "block_steps": Option(int, 8, "steps per block"),
    "scale": Option(str, "cpu", "network size: cpu or paper"),
    "precision": Option(str, "auto", "fp32, bf16 or auto"),
    "threads": Option(str, "null", "CPU threads; null: 1"),
    "out": Option(Path, RESULTS / "step_cpu.json", "where to write the figures"),
}

SELECTION_USAGE = """\
usage: python -m benchmarks selection [KEY=VALUE ...]

Time every selector beside torch.randn, the literal k candidates and plain scipy, in alternation.

  python -m benchmarks selection
  python -m benchmarks selection device=cuda out=benchmarks/results/selection_gpu.json
"""
SELECTION = {
    "repeats": Option(int, 25, "turns of each candidate"),
    "threads": Option(int, 1, "CPU threads"),
    "device": Option(str, "cpu", "cpu or cuda"),
    "out": Option(Path, RESULTS / "selection_cpu.json", "where to write the figures"),
}

STUDY_USAGE = """\
usage: python -m benchmarks study a=DIR [b=DIR] out=FILE.json

Turn a finished run, or two and their comparison, into a committed result: JSON with curves and origin; plot and text
of a comparison beside it.
"""
STUDY = {
    "a": Option(Path, REQUIRED, "run directory of arm A"),
    "b": Option(Path, None, "run directory of arm B"),
    "out": Option(Path, REQUIRED, "JSON file"),
}


def _step(options: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.step import measure

    settings = [f"{key}={options[key]}" for key in ("scale", "precision", "threads")]
    return measure(options["blocks"], options["block_steps"], settings)


def _selection(options: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.selection import measure
    from immiscible_policy.training.config import resolve_device

    for key in ("repeats", "threads"):
        if options[key] < 1:
            raise CommandError(f"{key}={options[key]}: needs 1 or more")
    return measure(options["repeats"], options["threads"], resolve_device(options["device"]))


def _study(options: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.study import study

    return study(options["a"], options["b"], options["out"])


BENCHMARKS = {
    "step": (STEP_USAGE, STEP, _step),
    "selection": (SELECTION_USAGE, SELECTION, _selection),
    "study": (STUDY_USAGE, STUDY, _study),
}


def _main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print("\n".join(usage for usage, _, _ in BENCHMARKS.values()))
        return
    if words[0] not in BENCHMARKS:
        raise CommandError(unknown("benchmark", words[0], list(BENCHMARKS)))
    usage, known, measure = BENCHMARKS[words[0]]
    options = parse(words[1:], known, usage)
    origin = provenance()
    figures = {**origin, "command": without_places(origin["command"]), **measure(options)}
    write_atomically(options["out"], (json.dumps(figures, indent=2) + "\n").encode())
    if words[0] != "study":
        print(json.dumps(figures, indent=2))
    print(f"saved in {options['out']}")


if __name__ == "__main__":
    run(_main)
