"""`python -m immiscible_policy.analysis NAME [KEY=VALUE ...]`: run an experiment, write JSON, PNG and Markdown."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from immiscible_policy.analysis.experiment import Experiment
from immiscible_policy.cli import CommandError, Option, parse, require_writable, run, unknown
from immiscible_policy.evaluation.plots import save_figure
from immiscible_policy.evaluation.rows import write_atomically
from immiscible_policy.provenance import provenance, without_places

NAMES = ("selectors", "distances", "timing", "clusters", "gaussianity", "tsne", "bijection", "steps", "scaling", "toy")
OUT = Option(Path, Path("runs/analysis"), "directory for NAME.json, NAME.png and NAME.md")
USAGE = "usage: python -m immiscible_policy.analysis NAME [KEY=VALUE ...]      (NAME --help explains one)"


def load(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        CommandError: If there is none.
    """
    if name not in NAMES:
        raise CommandError(unknown("experiment", name, NAMES))
    experiment: Experiment = importlib.import_module(f"immiscible_policy.analysis.{name}").EXPERIMENT
    return experiment


def main() -> None:
    """Console entry point."""
    run(_main)


def _main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        firsts = (f"  {name:<12} {load(name).usage.splitlines()[2]}" for name in NAMES)
        print("\n".join([USAGE, "", *firsts]))
        return
    experiment = load(words[0])
    options = parse(words[1:], {**experiment.options, "out": OUT}, experiment.usage)
    out: Path = options.pop("out")
    require_writable("out", out / "x")
    findings = experiment.measure(options)
    origin = provenance()
    origin["command"] = without_places(origin["command"])
    record = json.dumps({**origin, "figures": findings.figures}, indent=2, allow_nan=False) + "\n"
    path = out / words[0]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".json"), record.encode())
    save_figure(findings.picture, path.with_suffix(".png"))
    write_atomically(path.with_suffix(".md"), f"{findings.text.strip()}\n".encode())
    print(f"{findings.text.strip()}\n\nsaved in {path}.json, {path}.png, {path}.md")


if __name__ == "__main__":
    main()
