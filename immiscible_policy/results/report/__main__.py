"""`python -m immiscible_policy.results.report`: a report of any set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, unknown
from immiscible_policy.cli import run as run_command
from immiscible_policy.results.report.gather import names
from immiscible_policy.results.report.options import VIDEOS, page_file, require_page
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
    """Run the command.

    Args:
        argv: Words of the command line; those of the process by default, with a mistake shown as one line.

    Returns:
        Exit code 0.

    Raises:
        ValueError: For a mistake in argv, or runs that cannot be reported.
    """
    if argv is None:
        run_command(main)
    options = parse(argv, OPTIONS, USAGE)
    require_page("out", options["out"])
    runs = directories(options["runs"])
    reference = _reference(runs, options["against"])
    size = write_report(runs, options["out"], reference=reference, videos=options["videos"])
    print(f"{options['out']}: {len(runs)} run{'s' * (len(runs) > 1)}, {size / 1e6:.1f} MB")
    return 0


def directories(text: str) -> list[RunDirectory]:
    """Run directories from their names; a directory that is no run stands for the runs in it."""
    named = [RunDirectory(Path(part).expanduser()) for part in text.split(",")]
    return [run for each in named for run in ([each] if each.exists else runs_in(each.path) or [each])]


def _reference(runs: Sequence[RunDirectory], against: str | None) -> int:
    known = names([run.path for run in runs])
    if against is None:
        return next((index for index, run in enumerate(runs) if _is_vanilla(run)), 0)
    if against not in known:
        raise CommandError(f"against={against}: {unknown('run', against, known)}")
    return known.index(against)


def _is_vanilla(run: RunDirectory) -> bool:
    noise = run.config.get("noise")
    return (noise.get("name") if isinstance(noise, dict) else noise) == "vanilla"


if __name__ == "__main__":
    main()
