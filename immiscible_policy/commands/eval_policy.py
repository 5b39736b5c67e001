"""`python eval_policy.py`: coverage of what a run keeps, or of one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from immiscible_policy.cli import CommandError, Option, parse, require_writable, run
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.evaluation.starts import parse_starts
from immiscible_policy.plugins.bridge import open_checkpoint
from immiscible_policy.results.summary import scores, summarize
from immiscible_policy.store.checkpoint import Checkpoint, list_checkpoints
from immiscible_policy.store.rows import EpisodeRow, append_rows, read_run
from immiscible_policy.training.options import resolve_device

USAGE = """\
usage: python eval_policy.py run=DIR|checkpoint=PATH [KEY=VALUE ...]

Measure coverage over an explicit list of starts, for every checkpoint that a run keeps or for a single one.

  python eval_policy.py run=runs/mine
  python eval_policy.py run=runs/mine checkpoints=best starts=fresh     # adds max_fresh to the run's summary
  python eval_policy.py checkpoint=runs/mine/seed_0/checkpoints/step_003000 solver=ddpm sampling_steps=100
"""

OPTIONS = {
    "run": Option(Path, None, "run directory"),
    "checkpoint": Option(Path, None, "a single one instead: ours, Diffusion Policy's .ckpt, or LeRobot's directory"),
    "checkpoints": Option(str, "all", "of a run: all, best (highest mean coverage in training) or last"),
    "episodes": Option(int, 50, "number of starts, for starts=legacy and starts=fresh"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds such as 100000..100008"),
    **solving.OPTIONS,
    "device": Option(str, "cpu", "cpu or cuda"),
    "out": Option(Path, None, "write the episodes to this CSV file"),
}


def main() -> None:
    """Console entry point."""
    run(_main)


def _main(words: list[str]) -> int:
    options = parse(words, OPTIONS, USAGE)
    _check(options)
    starts = parse_starts(options["starts"], options["episodes"])
    chosen = _chosen(options)
    solver = solving.chosen_solver(chosen[0], options)
    console = Console(highlight=False)
    rows: list[EpisodeRow] = []
    for number, checkpoint in enumerate(chosen, start=1):
        agent = load_agent(checkpoint, solver, options["device"])
        with console.status(f"checkpoint {number} of {len(chosen)}: {checkpoint.path}"):
            found = evaluate(agent, starts, seed=checkpoint.metadata["seed"], checkpoint=checkpoint.step)
        if options["out"]:
            options["out"].parent.mkdir(parents=True, exist_ok=True)
            append_rows(options["out"], found)
        rows += found
    console.print(_table(rows, f"{len(starts)} starts, {solver.name} with {solver.steps} network calls"))
    if options["out"]:
        print(f"saved {len(rows)} episodes in {options['out']}")
    if options["run"] and options["starts"] == "fresh":
        _add_fresh(options["run"], rows)
    return 0


def _check(options: dict[str, Any]) -> None:
    if (options["run"] is None) == (options["checkpoint"] is None):
        raise CommandError("give run=DIR or checkpoint=PATH, one of them")
    if options["checkpoints"] not in ("all", "best", "last"):
        raise CommandError(f"checkpoints={options['checkpoints']}: known are all, best, last")
    options["device"] = resolve_device(options["device"])
    if options["out"] and options["out"].exists():
        raise CommandError(f"out={options['out']} exists already; name a new file")
    if options["out"]:
        require_writable("out", options["out"])
    if options["checkpoint"] and options["checkpoints"] != "all":
        raise CommandError(
            f"checkpoints={options['checkpoints']} chooses among those of run=; checkpoint= is one already"
        )


def _chosen(options: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints to evaluate, seed by seed, oldest first."""
    if options["checkpoint"]:
        return [open_checkpoint(options["checkpoint"])]
    directory = options["run"]
    kept = {path: list_checkpoints(path / "checkpoints") for path in sorted(directory.glob("seed_*"))}
    if not any(kept.values()):
        raise CommandError(f"run={directory} keeps no checkpoint; is it a run directory?")
    if options["checkpoints"] == "best":
        return list(_best(directory, kept))
    return [c for of_seed in kept.values() for c in (of_seed[-1:] if options["checkpoints"] == "last" else of_seed)]


def _best(directory: Path, kept: dict[Path, list[Checkpoint]]) -> Iterable[Checkpoint]:
    """Of each seed the checkpoint that `max` in the summary names."""
    for seed, found in scores(read_run(directory).seeds).items():
        step, _ = found.best("coverage")
        at = [c for c in kept.get(directory / f"seed_{seed}", []) if c.step == step]
        if not at:
            raise CommandError(f"run={directory}: the best checkpoint of seed {seed}, step {step}, was not kept")
        yield at[0]


def _add_fresh(directory: Path, rows: list[EpisodeRow]) -> None:
    for seed in sorted({row.seed for row in rows}):
        append_rows(directory / f"seed_{seed}" / "fresh.csv", [row for row in rows if row.seed == seed])
    summarize(read_run(directory))
    print(f"added max_fresh to {directory}/summary.md")


def _table(rows: list[EpisodeRow], title: str) -> Table:
    table = Table("seed", "checkpoint", "coverage", "final", "reward", "success", "steps", title=title)
    for seed, step in dict.fromkeys((row.seed, row.checkpoint) for row in rows):
        found = [row for row in rows if (row.seed, row.checkpoint) == (seed, step)]
        columns = ("max_coverage", "final_coverage", "max_reward", "success", "steps")
        coverage, final, reward, success, steps = (
            sum(float(getattr(row, column)) for row in found) / len(found) for column in columns
        )
        table.add_row(
            str(seed),
            str(step),
            f"{coverage:.3f}",
            f"{final:.3f}",
            f"{reward:.3f}",
            f"{success:.0%}",
            f"{steps:.0f}",
        )
    return table
