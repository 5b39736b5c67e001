"""Programs that measure something and write it down, `python -m PACKAGE NAME`: laboratory and benchmarks alike."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from immiscible_policy.cli import CommandError, Option, as_called, parse, require_writable, unknown
from immiscible_policy.results.writer import origin_here, write_result


class Findings(NamedTuple):
    """What an experiment measured.

    Attributes:
        figures: Every measured number, as JSON values.
        text: Markdown: definitions, a table with the published figures or the peers beside ours, what differs and why.
        picture: The plot, or None.
    """

    figures: dict[str, Any]
    text: str
    picture: Figure | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment as the command line sees it; each module that has one names it `EXPERIMENT`.

    Attributes:
        usage: What it measures, how, and the source in the papers, example commands; its third line says it in one.
        options: Its own words besides `out=`.
        measure: Runs it; must raise ValueError for bad options before any work starts.
    """

    usage: str
    measure: Callable[[dict[str, Any]], Findings]
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiments:
    """The experiments of a package (as imported), one per module of `names`; results go to `out` by default."""

    package: str
    names: Sequence[str]
    out: Path

    def load(self, name: str) -> Experiment:
        """The experiment of that name; a CommandError if there is none."""
        if name not in self.names:
            raise CommandError(unknown("experiment", name, self.names))
        experiment: Experiment = importlib.import_module(f"{self.package}.{name}").EXPERIMENT
        return experiment

    def run(self, words: list[str]) -> None:
        """Run the experiment that command-line words name, and write NAME.json, NAME.md and perhaps NAME.png.

        Raises CommandError for an unknown name or unusable words.
        """
        if not words or words[0] in ("-h", "--help", "help"):
            firsts = (f"  {name:<12} {self.load(name).usage.splitlines()[2]}" for name in self.names)
            usage = f"usage: python -m {self.package} NAME [KEY=VALUE ...]      (NAME --help explains one)"
            print("\n".join([as_called(usage), "", *firsts]))
            return
        experiment = self.load(words[0])
        place = Option(Path, self.out, "directory for NAME.json and NAME.md, and NAME.png if there is a picture")
        options = parse(words[1:], {**experiment.options, "out": place}, experiment.usage)
        out: Path = options.pop("out")
        require_writable("out", out / "x")
        origin = origin_here()  # of the code that is about to run
        findings = experiment.measure(options)
        content = {"figures": findings.figures}
        written = write_result(out / words[0], content, findings.text, findings.picture, origin=origin)
        print(f"{findings.text.strip()}\n\nsaved in {', '.join(map(str, written))}")
