"""`python -m immiscible_policy.results.report`: a report of any set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, unknown
from immiscible_policy.cli import run as run_command
from immiscible_policy.results.plots import selector_of
from immiscible_policy.results.report import VIDEOS, page_file, require_page
from immiscible_policy.results.report.evidence import names
from immiscible_policy.results.report.page import write_report
from immiscible_policy.store.run import RunDirectory, runs_in

USAGE = """\
write a report of runs: one HTML file with everything in it

  python -m immiscible_policy.results.report runs=runs/vanilla,runs/knn,runs/linear
  python -m immiscible_policy.results.report runs=runs/table2 against=vanilla out=table2.html videos=none
"""
OPTIONS = {
    "runs": Option(str, REQUIRED, "run directories, with commas between them; a directory of runs stands for its runs"),
    "against": Option(str, None, "name of the run that the others are compared with; default: the first without"
                                 " selection, or the first"),
    "out": Option(page_file, Path("report.html"), "the page"),
    "videos": VIDEOS,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; without words, on those of the process, with the ValueError of a mistake in one line."""
    if argv is None:
        run_command(main)
    options = parse(argv, OPTIONS, USAGE)
    require_page("out", options["out"])
    runs = []
    for text in options["runs"].split(","):
        run = RunDirectory(Path(text).expanduser())
        runs += [run] if run.exists else runs_in(run.path) or [run]
    known = names([run.path for run in runs])
    if options["against"] is None:
        reference = next((index for index, run in enumerate(runs) if selector_of(run) == "vanilla"), 0)
    elif options["against"] in known:
        reference = known.index(options["against"])
    else:
        raise CommandError(f"against={options['against']}: {unknown('run', options['against'], known)}")
    size = write_report(runs, options["out"], reference=reference, videos=options["videos"])
    print(f"{options['out']}: {len(runs)} run{'s' * (len(runs) > 1)}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    main()
