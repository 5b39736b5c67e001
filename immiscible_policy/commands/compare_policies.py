"""`python compare_policies.py`: two runs over the same starts and checkpoints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, program, require_writable
from immiscible_policy.results.compare import Comparison, cells, columns, compare, content, verdict, write_comparison
from immiscible_policy.results.report import VIDEOS, page_file, require_page
from immiscible_policy.results.writer import as_json
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.run import RunDirectory, label_runs

USAGE = """\
compare two runs over the same starts and checkpoints

  python compare_policies.py a=runs/knn b=runs/vanilla
  python compare_policies.py a=runs/knn b=runs/vanilla report=report.html
"""
OPTIONS = {
    "a": Option(Path, REQUIRED, "run directory A"),
    "b": Option(Path, REQUIRED, "run directory B"),
    "out": Option(Path, None, "directory for comparison.json, comparison.md and comparison.png"),
    "json": Option(Path, None, "file for the comparison as JSON"),
    "report": Option(page_file, None, "HTML page with verdict, curves, episodes, rollouts, noise and commands"),
    "videos": VIDEOS,
}
WIDTH = 130


@program
def main(words: list[str]) -> None:
    """Compare, print, and write what `out=`, `json=` and `report=` name."""
    options = parse(words, OPTIONS, USAGE)
    if options["out"] is not None and options["out"].is_file():
        raise CommandError(f"out={options['out']} is a file; give a directory")
    if options["json"] is not None and options["json"].is_dir():
        raise CommandError(f"json={options['json']} is a directory; give a file")
    for key in ("out", "json"):
        if options[key] is not None:
            require_writable(key, options[key])
    if options["report"] is not None:
        require_page("report", options["report"])
    a, b = RunDirectory(options["a"]), RunDirectory(options["b"])
    comparison = compare(a, b)
    _show(comparison)
    saved = []
    if options["out"] is not None:
        saved += write_comparison(options["out"], comparison, a, b)
    if options["json"] is not None:
        write_atomically(options["json"], as_json(content(comparison)))
        saved.append(options["json"])
    if options["report"] is not None:
        from immiscible_policy.results.report.page import write_report  # needs Jinja and the rollouts

        runs = label_runs([b, a])
        write_report(runs, options["report"], reference=next(iter(runs)), videos=options["videos"])
        saved.append(options["report"])
    if saved:
        print(f"saved in {', '.join(map(str, saved))}")


def _show(comparison: Comparison) -> None:
    """Print the comparison, at least WIDTH columns wide where nobody looks at the terminal's edge."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=max(WIDTH, console.width))
    console.print(f"A = {comparison.a}\nB = {comparison.b}")
    for note in comparison.notes:
        console.print(f"- {note}")
    table = Table(box=None, header_style="bold")
    for index, column in enumerate(columns(comparison)):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for result in comparison.results:
        table.add_row(*cells(result), style="bold" if result is comparison.headline else None)
    console.print(table)
    console.print(verdict(comparison.headline))
    console.print(comparison.headline.needed_words)
