"""`python -m immiscible_policy.results.report`: a report of any set of runs."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, program, unknown
from immiscible_policy.results.plots import selector_of
from immiscible_policy.results.report import VIDEOS, page_file, require_page
from immiscible_policy.results.report.page import write_report
from immiscible_policy.store.run import RunDirectory, named_runs

USAGE = """\
write a report of runs as one HTML file

  python -m immiscible_policy.results.report runs=runs/vanilla,runs/knn,runs/linear
  python -m immiscible_policy.results.report runs=runs/table2 against=vanilla out=table2.html videos=none
"""
OPTIONS = {
    "runs": Option(named_runs, REQUIRED, "DIR,DIR or NAME=DIR,NAME=DIR: run directories, or directories of runs"),
    "against": Option(str, None, "name of the run that the others are compared with; default: the first without"
                                 " selection, or the first"),
    "out": Option(page_file, Path("report.html"), "the page"),
    "videos": VIDEOS,
}  # fmt: skip


@program
def main(words: list[str]) -> None:
    """Write the report."""
    options = parse(words, OPTIONS, USAGE)
    require_page("out", options["out"])
    runs: dict[str, RunDirectory] = options["runs"]
    if options["against"] not in (None, *runs):
        raise CommandError(f"against={options['against']}: {unknown('run', options['against'], list(runs))}")
    unselected = (name for name, run in runs.items() if selector_of(run) == "vanilla")
    reference = options["against"] or next(unselected, next(iter(runs)))
    size = write_report(runs, options["out"], reference=reference, videos=options["videos"])
    print(f"{options['out']}: {len(runs)} run{'s' * (len(runs) > 1)}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
