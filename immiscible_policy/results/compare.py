"""Compare two runs over the same starts: paired differences, what they can tell, and what they cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse
from immiscible_policy.cli import run as run_command
from immiscible_policy.evaluation.statistics import (
    Array,
    Interval,
    Needed,
    SignTest,
    difference_arms,
    episodes_needed,
    interval,
    mean_interval,
    needed_sentence,
    percentile_interval,
    sign_test,
    two_level_bootstrap,
)
from immiscible_policy.results.plots import comparison_figure
from immiscible_policy.results.report.options import VIDEOS, page_file, require_page
from immiscible_policy.results.summary import LAST, METRICS, Scores, fresh_scores, scores
from immiscible_policy.results.text import table
from immiscible_policy.results.writer import finite, save_figure
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.rows import Run, read_run
from immiscible_policy.store.run import SETTINGS_OF_PLACE

USAGE = """\
compare two runs over the same starts and checkpoints

  python compare_policies.py a=runs/knn b=runs/vanilla
  python compare_policies.py a=runs/knn b=runs/vanilla out=comparison json=comparison.json
  python compare_policies.py a=runs/knn b=runs/vanilla report=report.html
"""
OPTIONS = {
    "a": Option(Path, REQUIRED, "run directory A"),
    "b": Option(Path, REQUIRED, "run directory B"),
    "out": Option(Path, None, "directory for comparison.json, comparison.md and comparison.png"),
    "json": Option(Path, None, "file for the comparison as JSON"),
    "report": Option(page_file, None, "page with everything in it: curves, episodes, rollouts, noise, commands"),
    "videos": VIDEOS,
}
WIDTH = 130


@dataclass(frozen=True)
class Result:
    """One score of A and B, and the difference.

    Attributes:
        metric: One of `summary.METRICS`.
        kind: One of `summary.KINDS`.
        a: Mean of A.
        b: Mean of B.
        difference: A - B.
        bootstrap: Percentile interval of the two-level bootstrap of A - B, for comparison.
        over_seeds: Sign test over training seeds; None where the runs' seeds differ.
        over_episodes: Sign test over (seed, start) pairs, or over starts where the seeds differ.
        needed: How large an experiment would exclude 0.
        needed_words: The same in words.
    """

    metric: str
    kind: str
    a: Interval
    b: Interval
    difference: Interval
    bootstrap: tuple[float, float]
    over_seeds: SignTest | None
    over_episodes: SignTest
    needed: Needed
    needed_words: str

    @property
    def ratio(self) -> float:
        """Mean of A over mean of B; NaN where B is 0."""
        return self.a.estimate / self.b.estimate if self.b.estimate else math.nan


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        a: Directory of run A.
        b: Directory of run B.
        seeds_a: Training seeds of A.
        seeds_b: Training seeds of B.
        paired: Whether the seeds are the same, so that differences are paired by seed as well as by start.
        starts: Starts that both were evaluated on.
        checkpoints: Checkpoints that every seed of both was evaluated at.
        notes: What the reader has to know, in words.
        results: The scores, last10 before max before max_fresh within each metric.
    """

    a: str
    b: str
    seeds_a: list[int]
    seeds_b: list[int]
    paired: bool
    starts: list[int]
    checkpoints: list[int]
    notes: list[str]
    results: list[Result]

    @property
    def headline(self) -> Result:
        """The result that the comparison is about: coverage, mean of the last checkpoints."""
        return self.results[0]


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs at the checkpoints and on the starts that they share.

    Args:
        a: Run A.
        b: Run B.

    Returns:
        The comparison, a function of the rows alone.

    Raises:
        ValueError: If they share no start or no checkpoint.
    """
    whole_a, whole_b = scores(a.seeds), scores(b.seeds)
    everyone = [*whole_a.values(), *whole_b.values()]
    starts = sorted(set.intersection(*(set(found.starts) for found in everyone)))
    steps = sorted(set.intersection(*(set(found.steps) for found in everyone)))
    if not starts:
        raise ValueError(f"{a.dir} and {b.dir} share no start; evaluate both on the same starts")
    if not steps:
        raise ValueError(f"{a.dir} and {b.dir} share no checkpoint; evaluate both at the same steps")
    of_a, of_b = ({seed: found.at(steps, starts) for seed, found in whole.items()} for whole in (whole_a, whole_b))
    paired = list(of_a) == list(of_b)
    results = [
        _result(metric, kind, values_a, values_b, paired)
        for metric in METRICS
        for kind, values_a, values_b in _readings(a, b, of_a, of_b, metric)
    ]
    notes = _notes(a, b, everyone, starts, steps, paired, min(len(of_a), len(of_b)))
    return Comparison(str(a.dir), str(b.dir), list(of_a), list(of_b), paired, starts, steps, notes, results)


def verdict(result: Result) -> str:
    """What one result says, in one or two plain sentences; a null result as plainly as a win.

    Args:
        result: The result.

    Returns:
        The sentences.
    """
    found, name = result.difference, f"{result.metric}, {result.kind}"
    if math.isnan(found.low):
        return f"{name}: A - B = {found.estimate:+.4f}; {found.meaning}, so nothing can be concluded."
    span = f"A - B = {found.estimate:+.4f}, 95 % interval [{found.low:+.4f}, {found.high:+.4f}] {found.meaning}"
    if not found.excludes_zero:
        return f"{name}: no difference is shown. {span}; every value in it, 0 among them, fits the data."
    better, worse = "AB" if found.estimate > 0 else "BA"
    return f"{name}: {better} is better than {worse}. {span}; 0 is not in it."


def markdown(comparison: Comparison) -> str:
    """The comparison as text.

    Args:
        comparison: The comparison.

    Returns:
        Markdown.
    """
    lines = [
        f"# {_name(comparison.a)} (A) against {_name(comparison.b)} (B)",
        "",
        *(f"- {note}" for note in comparison.notes),
        "",
        f"**{verdict(comparison.headline)}**",
        "",
        comparison.headline.needed_words,
        "",
        *table(_columns(comparison), [_cells(result) for result in comparison.results]),
        "",
        *(f"- {verdict(result)}" for result in comparison.results),
        "",
    ]
    return "\n".join(lines)


def as_json(comparison: Comparison) -> str:
    """The comparison as JSON; what is infinite or unknown is null.

    Args:
        comparison: The comparison.

    Returns:
        JSON text.
    """
    content = asdict(comparison)
    for entry, result in zip(content["results"], comparison.results, strict=True):
        entry |= {"ratio": result.ratio, "verdict": verdict(result)}
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison.

    Args:
        comparison: The comparison.
        console: Where to print.
    """
    console.print(f"A = {comparison.a}\nB = {comparison.b}", highlight=False)
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False)
    table = Table(box=None, header_style="bold")
    for index, column in enumerate(_columns(comparison)):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for result in comparison.results:
        table.add_row(*_cells(result), style="bold" if result is comparison.headline else None)
    console.print(table)
    for line in (verdict(comparison.headline), comparison.headline.needed_words):
        console.print(line, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `compare_policies.py`.

    Args:
        argv: Words of the command line; those of the process by default, with a mistake shown as one line.

    Returns:
        Exit code 0.

    Raises:
        ValueError: For a mistake in argv, or runs that cannot be compared.
    """
    if argv is None:
        run_command(main)
    options = parse(argv, OPTIONS, USAGE)
    if options["out"] is not None and options["out"].is_file():
        raise CommandError(f"out={options['out']} is a file; give a directory")
    if options["json"] is not None and options["json"].is_dir():
        raise CommandError(f"json={options['json']} is a directory; give a file")
    if options["report"] is not None:
        require_page("report", options["report"])
    a, b = read_run(options["a"]), read_run(options["b"])
    comparison = compare(a, b)
    show(comparison, _console())
    if options["out"] is not None:
        write_comparison(options["out"], comparison, a, b)
    if options["json"] is not None:
        write_atomically(options["json"], as_json(comparison).encode())
    if options["report"] is not None:
        from immiscible_policy.results.report.page import write_report  # it builds on this module

        write_report([b, a], options["report"], reference=0, videos=options["videos"])
    return 0


def write_comparison(out: Path, comparison: Comparison, a: Run, b: Run) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.png`.

    Args:
        out: Directory, created if absent.
        comparison: The comparison of a and b.
        a: Run A.
        b: Run B.
    """
    write_atomically(out / "comparison.json", as_json(comparison).encode())
    write_atomically(out / "comparison.md", markdown(comparison).encode())
    runs = {f"A {_name(comparison.a)}": scores(a.seeds), f"B {_name(comparison.b)}": scores(b.seeds)}
    differences = {
        f"{result.metric}, {result.kind}": result.difference
        for result in comparison.results
        if result.metric in ("coverage", "reward")
    }
    save_figure(comparison_figure(runs, differences), out / "comparison.png")


def settings(run: Run) -> dict[str, Any]:
    """What decides a run's result; its data by their content where that is recorded, wherever they lay.

    Args:
        run: The run.

    Returns:
        Its settings by name.
    """
    found = {key: value for key, value in run.config.items() if key not in SETTINGS_OF_PLACE}
    origin = run.dir / "provenance.json"
    if origin.exists():
        found["data"] = f"of content {json.loads(origin.read_text())['data']['content_hash'][:12]}"
    return found


def _readings(
    a: Run, b: Run, of_a: Mapping[int, Scores], of_b: Mapping[int, Scores], metric: str
) -> list[tuple[str, Array, Array]]:
    """Scores (seeds, starts) of A and of B, by kind."""
    best_a, best_b = ({seed: found.best(metric) for seed, found in of.items()} for of in (of_a, of_b))
    last10 = [np.stack([found.last10(metric) for found in of.values()]) for of in (of_a, of_b)]
    largest = [np.stack([values for _, values in best.values()]) for best in (best_a, best_b)]
    fresh_a, fresh_b = (
        fresh_scores(run, {seed: step for seed, (step, _) in best.items()}, metric)
        for run, best in ((a, best_a), (b, best_b))
    )
    readings = [("last10", last10[0], last10[1]), ("max", largest[0], largest[1])]
    common = sorted(fresh_a.keys() & fresh_b.keys())
    if common:
        fresh = [np.stack([of[start] for start in common], axis=1) for of in (fresh_a, fresh_b)]
        readings.append(("max_fresh", fresh[0], fresh[1]))
    return readings


def _result(metric: str, kind: str, a: Array, b: Array, paired: bool) -> Result:
    arms = difference_arms(a, b, same_seeds=paired)
    found, needed = interval(arms), episodes_needed(arms)
    samples = two_level_bootstrap(arms, np.random.default_rng(0))
    return Result(
        metric,
        kind,
        mean_interval(a),
        mean_interval(b),
        found,
        percentile_interval(samples),
        sign_test(arms[0].mean(1)) if paired else None,
        sign_test(arms[0] if paired else a.mean(0) - b.mean(0)),
        needed,
        needed_sentence(needed, found.excludes_zero, min(len(a), len(b)), a.shape[1]),
    )


def _notes(
    a: Run,
    b: Run,
    everyone: Sequence[Scores],
    starts: list[int],
    steps: list[int],
    paired: bool,
    n_seeds: int,
) -> list[str]:
    last = min(LAST, len(steps))
    notes = [
        f"{len(starts)} common starts; {len(steps)} common checkpoints ({steps[0]} to {steps[-1]}), of which "
        f"last10 takes the last {last}.",
        "Paired by seed and start: both runs have the same training seeds."
        if paired
        else "Paired by start only: the runs have different training seeds.",
    ]
    if n_seeds == 1:
        notes.append("A run has one training seed: the intervals say nothing about other training seeds.")
    elif paired and n_seeds < 6:
        notes.append(f"{n_seeds} seeds cannot give a sign test over seeds below p = {2.0 ** (1 - n_seeds):.3g}.")
    dropped = {step for found in everyone for step in found.steps} - set(steps)
    if dropped:
        notes.append(f"Left out, as not every seed has them: checkpoints {', '.join(map(str, sorted(dropped)))}.")
    unshared = {start for found in everyone for start in found.starts} - set(starts)
    if unshared:
        notes.append(f"Left out, as only one run has them: {len(unshared)} starts.")
    differing = _differing(settings(a), settings(b))
    notes.append(f"Settings that differ: {'; '.join(differing)}." if differing else "No setting differs.")
    notes.append(
        "A:B counts wins, with a two-sided sign test. Over (seed, start) pairs it speaks of these runs alone."
        if paired
        else "A:B counts wins, with a two-sided sign test. Over starts it speaks of these runs alone."
    )
    notes.append(
        "The result is coverage, last10: the other rows read the same episodes again, and max picks its "
        "checkpoint on them."
    )
    return notes


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {a.get(key)} against {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]


def _columns(comparison: Comparison) -> list[str]:
    units = "pairs" if comparison.paired else "starts"
    return ["", "A", "B", "A - B [95 %]", "A / B", "A:B by seeds", f"A:B by {units}", "needed starts, seeds"]


def _cells(result: Result) -> list[str]:
    found = result.difference
    ends = "" if math.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    needed = "enough" if found.excludes_zero else f"{_size(result.needed.starts)}, {_size(result.needed.seeds)}"
    return [
        f"{result.metric}, {result.kind}",
        f"{result.a.estimate:.3f}",
        f"{result.b.estimate:.3f}",
        f"{found.estimate:+.3f}{ends}",
        "-" if math.isnan(result.ratio) else f"{result.ratio:.3f}",
        "-" if result.over_seeds is None else _sign(result.over_seeds),
        _sign(result.over_episodes),
        needed,
    ]


def _sign(test: SignTest) -> str:
    return f"{test.wins}:{test.losses} p={test.p:.2g}"


def _size(number: float) -> str:
    return "unknown" if math.isnan(number) else "never" if math.isinf(number) else f"{number:,.0f}"


def _name(directory: str) -> str:
    return Path(directory).resolve().name


def _console() -> Console:
    """A console on stdout, at least WIDTH columns wide where nobody looks at its edge."""
    console = Console()
    return console if console.is_terminal else Console(width=max(WIDTH, console.width))
