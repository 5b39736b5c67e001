"""`python eval_policy.py`: the scores of what a run keeps, or of one checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from immiscible_policy.cli import COUNT, CommandError, Option, parse, program, require_new, require_writable
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.offline import score
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.evaluation.scores import best_steps, means, scores, set_means
from immiscible_policy.evaluation.statistics import count
from immiscible_policy.plugins.bridge import find_checkpoint
from immiscible_policy.recipes.robot import held_out
from immiscible_policy.results.summary import summarize
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.rows import EpisodeRow, append_rows
from immiscible_policy.store.run import FRESH, RunDirectory
from immiscible_policy.tasks import DEFAULT, Task, primary, recorded_task, summarised
from immiscible_policy.training.options import device_option, resolve_device

USAGE = """\
usage: python eval_policy.py run=DIR|checkpoint=PATH [KEY=VALUE ...]

Scores every checkpoint of a run, or a single one, on a list of starts.

  python eval_policy.py run=runs/mine
  python eval_policy.py run=runs/mine checkpoints=best starts=fresh     # adds max_fresh to the run's summary
  python eval_policy.py checkpoint=runs/mine/seed_0/checkpoints/step_003000 solver=ddpm sampling_steps=100
"""

OPTIONS = {
    "run": Option(Path, None, "run directory"),
    "checkpoint": Option(Path, None, "a checkpoint (also .ckpt or LeRobot), or a run or seed (its best)"),
    "checkpoints": Option(str, "all", "checkpoints of a run: all, best (primary metric in training) or last"),
    "task": Option(str, None, f"task of a checkpoint that names none; absent: {DEFAULT}"),
    "episodes": Option(COUNT, 50, "number of starts, for starts=legacy and starts=fresh"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds such as 100000..100008"),
    "data": Option(Path, None, "task=none: the store that was trained on, where it has moved"),
    **solving.OPTIONS,
    "device": device_option(),
    "out": Option(Path, None, "write the episodes to this CSV file"),
}


@program
def main(words: list[str]) -> None:
    """Evaluate, print the table, and write the episodes."""
    options = parse(words, OPTIONS, USAGE)
    _check(options)
    chosen = _chosen(options)
    if "model" in chosen[0].config:
        raise CommandError(f"{chosen[0].path} holds an image model, not a policy; use eval_image.py")
    task = recorded_task(chosen[0].config, options["task"] or DEFAULT)
    if options["task"] not in (None, task.name):
        raise CommandError(
            f"task={options['task']}: {chosen[0].path} is a policy for task={task.name}; leave task= out"
        )
    solver, starts = solving.chosen_solver(chosen[0], options), task.starts(options["starts"], options["episodes"])
    if not task.has_environment:
        _require_no_starts(task, options)
        held = held_out(chosen[0].metadata, options["data"])
        starts = held.episodes
    elif options["data"]:
        raise CommandError(f"data={options['data']}: task={task.name} is scored in its simulator; leave data= out")
    fresh = _fresh_run(options, starts)
    console = Console(highlight=False, markup=False)
    rows: list[EpisodeRow] = []
    for number, checkpoint in enumerate(chosen, start=1):
        agent = load_agent(checkpoint, solver, options["device"])
        with console.status(escape(f"checkpoint {number} of {len(chosen)}: {checkpoint.path}")):
            seed, step = checkpoint.metadata["seed"], checkpoint.step
            if task.has_environment:
                measured = evaluate(task, agent, starts, seed=seed, checkpoint=step)
            else:
                measured, _ = score(agent, held, seed=seed, checkpoint=step)
        if options["out"]:
            append_rows(options["out"], measured, task.metrics)
        if fresh is not None:
            fresh.seed(seed).append_fresh(measured)
        rows += measured
    title = f"{count(len(starts), task.scored_on)}, {solver.name} with {solver.steps} network calls"
    console.print(_table(rows, task, title))
    if options["out"]:
        print(f"saved {len(rows)} episodes in {options['out']}")
    if fresh is not None:
        summarize(fresh)
        print(f"added max_fresh to {fresh.path}/summary.md")


def _fresh_run(options: dict[str, Any], starts: Collection[int]) -> RunDirectory | None:
    """The run that episodes on held-out starts are added to, if any; says why where some are not."""
    if options["run"] is None or options["starts"] != "fresh":
        return None
    run = RunDirectory(options["run"])
    if others := [f"{key}=" for key in solving.OPTIONS if options[key] is not None]:
        print(f"max_fresh is of the run's own sampling: these episodes, with {' '.join(others)}, are not added to it")
        return None
    if seen := run.starts_seen.intersection(starts):
        print(f"no max_fresh is added to the run: checkpoints were chosen on {len(seen)} of these starts")
        return None
    for number in run.checkpoints():
        require_writable("run", run.seed(number).path / FRESH)
    return run


def _require_no_starts(task: Task, options: dict[str, Any]) -> None:
    for key in ("starts", "episodes"):
        if options[key] != OPTIONS[key].default:
            why = f"task={task.name} is scored on the episodes that its run held out"
            raise CommandError(f"{key}={options[key]}: {why}; leave {key}= out")


def _check(options: dict[str, Any]) -> None:
    which = options["checkpoints"]
    if (options["run"] is None) == (options["checkpoint"] is None):
        raise CommandError("give run=DIR or checkpoint=PATH, one of them")
    if which not in ("all", "best", "last"):
        raise CommandError(f"checkpoints={which}: choose all, best or last")
    options["device"] = resolve_device(options["device"])
    if options["out"]:
        require_new("out", options["out"])
    if options["checkpoint"] and which != "all":
        raise CommandError(f"checkpoints={which} chooses among those of run=; checkpoint= is one already")


def _chosen(options: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints to evaluate, seed by seed, oldest first."""
    if options["checkpoint"]:
        return [find_checkpoint(options["checkpoint"])]
    run = RunDirectory(options["run"])
    kept = run.checkpoints()
    if not kept:
        raise CommandError(f"run={run.path} has no checkpoint; is it a run directory?")
    if options["checkpoints"] == "last":
        return [of_seed[-1] for of_seed in kept.values()]
    if options["checkpoints"] == "all":
        return [checkpoint for of_seed in kept.values() for checkpoint in of_seed]
    best = best_steps(scores(run.episodes()), primary(run.task))  # what `max` in the summary names
    try:
        return [run.seed(seed).checkpoint(step) for seed, step in best.items()]
    except CheckpointError as error:
        raise CommandError(f"checkpoints=best: {error}; use checkpoints=last or all") from None


def _table(rows: list[EpisodeRow], task: Task, title: str) -> Table:
    metrics, together = summarised(task), task.set_metrics
    names = [metric.name for metric in metrics] + [metric.name for metric in together]
    table = Table("seed", "checkpoint", *names, "steps", title=title)
    for seed, step in dict.fromkeys((row.seed, row.checkpoint) for row in rows):
        measured = [row for row in rows if (row.seed, row.checkpoint) == (seed, step)]
        mean = means(measured)
        shown = [f"{mean[metric.name]:{'.0%' if metric.reduce == 'any' else '.3f'}}" for metric in metrics]
        shown += [f"{value:.3f}" for value in set_means(measured, together).values()]
        table.add_row(str(seed), str(step), *shown, f"{sum(row.steps for row in measured) / len(measured):.0f}")
    return table
