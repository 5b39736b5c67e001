"""What the programs of the laboratory and of the benchmarks share: definitions written once, tables, panels.

A program's docstring is its usage and, without the examples, the text above its tables:

    One line that says what it measures.          -> the list of programs, the title
    Definitions, Markdown.                        -> --help, the result
      python -m PACKAGE NAME KEY=VALUE            -> --help
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from string import Formatter
from typing import Any

from matplotlib.axes import Axes

from immiscible_policy.cli import CommandError, Option, boolean
from immiscible_policy.palette import colours, readable, style
from immiscible_policy.results import formatting
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table as markdown

Document = dict[str, Any]  # Measured figures as JSON values
QUICK = {"quick": Option(boolean, False, "a dry run in seconds: few turns, small sizes in place of those asked for")}


def program(
    module: str,
    doc: str | None,
    measure: Callable[[Document], Findings],
    options: Mapping[str, Option],
    quick: Document | None = None,
) -> Experiment:
    """A program whose usage and definitions are its module's docstring; the text of `measure` is the tables alone.

    Values of `quick` take the place of those asked for where `quick=true`, an option of such programs.
    """
    package, _, name = module.rpartition(".")
    line, *paragraphs = (doc or "").strip().split("\n\n")
    definitions = [paragraph for paragraph in paragraphs if not paragraph.startswith("  python")]

    def measured(values: Document) -> Findings:
        if values.pop("quick", False):
            values |= quick or {}
        findings = measure(values)
        return findings._replace(text="\n\n".join([f"## {line}", *definitions, findings.text.strip()]) + "\n")

    every = {**options, **(QUICK if quick else {})}
    return Experiment(f"usage: python -m {package} {name} [KEY=VALUE ...]\n\n{doc}", measured, every)


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; a column's value is the form of its cells, such as `{arm}` or `{scores[last]:+.3f}`.

    An interval {mean, low, high} is written as every interval is; a cell whose figures are missing or None stays empty.
    """

    def cell(form: str, row: Mapping[str, Any]) -> str:
        try:
            return _Cells().vformat(form, (), row).strip()
        except (KeyError, TypeError):
            return ""

    return markdown([*columns], [[cell(form, row) for form in columns.values()] for row in rows])


class _Cells(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Mapping):
            return formatting.text(value, format_spec)
        return str(super().format_field(value, format_spec))


def require(options: Document, **bounds: tuple[float, float]) -> None:
    """Raise CommandError for the first option outside its bounds."""
    for key, (least, most) in bounds.items():
        if not least <= options[key] <= most:
            allowed = f"use {least:,} or more" if most == float("inf") else f"choose {least:,} to {most:,}"
            raise CommandError(f"{key}={options[key]}: {allowed}")


def means(lists: Iterable[Iterable[float]]) -> list[float]:
    """Place by place the mean of lists of one length."""
    return [mean(values) for values in zip(*lists, strict=True)]


def plain(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """The common look of a panel, and what it shows."""
    style(axes)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)


def curves(axes: Axes, at: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    """A line with marks for each label, and a small legend."""
    for label, colour in colours(list(lines)).items():
        axes.plot(at, lines[label], color=colour, marker="o", markersize=3.5, label=readable(label))
    legend(axes)


def legend(axes: Axes, place: Any = "best") -> None:
    """A small legend without a frame."""
    axes.legend(fontsize=8, frameon=False, loc=place)


def log2(axes: Axes, at: Sequence[float]) -> None:
    """A logarithmic horizontal axis, marked where it was measured."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [f"{value:,g}" for value in at])
    axes.minorticks_off()
