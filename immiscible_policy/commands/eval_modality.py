"""`python eval_modality.py`: do policies keep all the modes that their demonstrations show?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option, parse, program, require_writable, whole
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.statistics import Interval, count
from immiscible_policy.lab.modality.arms import (
    MOST_REPETITIONS,
    Arm,
    difference,
    estimate,
    followed_first,
    measure,
    modes_of,
    training_demonstrations,
    training_modes,
)
from immiscible_policy.lab.modality.plots import evolution_figure, paths_figure
from immiscible_policy.palette import COLOURS
from immiscible_policy.results import formatting
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import save_figure, write_result
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.tasks.task import Modes
from immiscible_policy.training.options import device_option, resolve_device

USAGE = """\
usage: python eval_modality.py runs=DIR[,DIR...] [KEY=VALUE ...]

Which of a task's modes do policies choose from starts that favour none? Every run is rolled out under every solver
named; differences are to the first run under the first solver.

  python eval_modality.py runs=runs/modality/vanilla,runs/modality/linear out=modality
  python eval_modality.py runs=runs/modality/vanilla solver=ddim,renoise checkpoints=last out=solvers
"""
OPTIONS = {
    "runs": Option(named_runs, REQUIRED, "DIR,DIR or NAME=DIR,NAME=DIR: run directories, or directories of runs"),
    "out": Option(Path, Path("modality"), "directory for modality.json, modality.md, modality.png and paths.png"),
    "repetitions": Option(whole(1, MOST_REPETITIONS), 50, "rollouts per start, R; 50 as published"),
    "data": Option(Path, None, "the store that was trained on, where it has moved"),
    "starts": Option(COUNT, None, "only the first N of the task's starts; 1 as published; absent: all"),
    "checkpoints": Option(str, "all", "all (that every seed has) or last"),
    **solving.OPTIONS,
    "device": device_option(),
}
SHARE = (0.0, 1.0)


def shared_checkpoints(run: RunDirectory, which: str) -> dict[int, list[Checkpoint]]:
    """The checkpoints of each seed, `all` or the `last`, at the steps that all seeds of a run have.

    CommandError if there is no such step.
    """
    by_seed = {seed: {one.step: one for one in saved} for seed, saved in run.checkpoints().items()}
    shared = sorted(set.intersection(*map(set, by_seed.values()))) if by_seed else []
    if not shared:
        problem = f"its {len(by_seed)} seeds with checkpoints have none at the same step; train them first"
        raise CommandError(f"runs={run.path}: {problem}")
    steps = shared if which == "all" else shared[-1:]
    return {seed: [saved[step] for step in steps] for seed, saved in by_seed.items()}


@program
def main(words: list[str]) -> None:
    """Roll out, count modes, and write the tables and pictures."""
    options = parse(words, OPTIONS, USAGE)
    if options["checkpoints"] not in ("all", "last"):
        raise CommandError(f"checkpoints={options['checkpoints']}: choose all or last")
    options["device"] = resolve_device(options["device"])
    if (options["out"] / "modality.json").exists():
        raise CommandError(f"out={options['out']} already has a modality.json; name a new directory")
    require_writable("out", options["out"] / "modality.json")
    runs: dict[str, RunDirectory] = options["runs"]
    kept = {name: shared_checkpoints(run, options["checkpoints"]) for name, run in runs.items()}
    demos = {name: training_demonstrations(run, options["data"]) for name, run in runs.items()}
    for name, run in runs.items():
        training_modes(run, demos[name])  # refuses those that show no mode before the first rollout
    modes = {name: _modes(run, options["starts"]) for name, run in runs.items()}
    solvers = {name: _solvers(kept[name], options) for name in runs}
    if sum(map(len, solvers.values())) > len(COLOURS):
        crowd = f"{len(runs)} runs under {len(solvers[next(iter(runs))])} solvers"
        raise CommandError(f"{crowd} are too many for one picture; at most {len(COLOURS)} fit")
    arms = []
    with Console(stderr=True).status("") as status:

        def show(line: str) -> None:
            status.update(escape(line))

        for name, run in runs.items():
            for solver in solvers[name]:
                how = (modes[name], options["repetitions"], solver, options["device"])
                arm = measure(run, demos[name], kept[name], *how, show)
                several = f" {solver.name}{solver.steps}" if len(solvers[name]) > 1 else ""
                arms.append(replace(arm, name=name + several))
    if (first := arms[0].run.config["noise"]["name"]) != "vanilla":  # published shares are those of its mode
        why = f"the first run has noise={first} (published: vanilla)"
        arms[0] = replace(arms[0], departures=[*arms[0].departures, why])
    write_result(options["out"] / "modality", figures(arms), markdown(arms), evolution_figure(arms))
    save_figure(paths_figure(arms), options["out"] / "paths.png")
    print(markdown(arms))
    print(f"saved in {options['out']}: modality.json, modality.md, modality.png, paths.png")


def figures(arms: Sequence[Arm]) -> dict[str, Any]:
    """Everything counted, and the measures at every checkpoint; None where there is none."""

    def at_every_checkpoint(arm: Arm, name: str) -> list[dict[str, Any]]:
        values, floor = arm.values(name), arm.floor(name)
        return [
            {
                "step": step,
                **formatting.figures(estimate(values[:, index])),
                "by_seed": values[:, index].mean(1).tolist(),
                **({} if floor is None else {"floor": float(floor[index])}),
            }
            for index, step in enumerate(arm.steps)
        ]

    base, modes = arms[0], arms[0].modes
    return {
        "modes": modes.names,
        "starts": {key: values.tolist() for key, values in modes.options.items()},
        "repetitions": base.repetitions,
        "arms": [
            {
                "name": arm.name,
                "run": arm.run.name,
                "origin": arm.run.origin,
                "seeds": arm.seeds,
                "steps": arm.steps,
                "gaps": arm.gaps,
                "departures": arm.departures,
                "demonstrated": arm.demonstrated.tolist(),
                "counts": arm.counts.tolist(),
                "scores_by_start": arm.scores.tolist(),
                "shares": arm.shares.tolist(),
                **{name: at_every_checkpoint(arm, name) for name in arm.measures},
                "followed_first": formatting.figures(followed_first(arm, base)),
                "difference_to": None if arm is base else base.name,
                "difference": {
                    name: formatting.figures(difference(arm, base, name)) for name in arm.measures if arm is not base
                },
            }
            for arm in arms
        ],
    }


def markdown(arms: Sequence[Arm]) -> str:
    """The last checkpoints as a table beside published figures, and the differences to the first run."""
    base, modes = arms[0], arms[0].modes
    metric = base.measures[-1]
    shares = " / ".join(modes.names) if modes.are_few else "modes"
    columns = ("run", "seeds", "step", shares, f"{base.name}'s mode", "majority", "its floor", "TV to demonstrations",
               "its floor", metric)  # fmt: skip
    rows = [_row(arm, base) for arm in arms]
    departures = list(dict.fromkeys(f"{arm.name}: {text}" for arm in arms for text in arm.departures))
    if not departures:
        rows += [[name, "", "", "", major, "", "", "", "", score] for name, major, score in modes.published]
    parts = [
        f"# {modes.title}",
        f"{count(len(modes), 'start')} x {base.repetitions} rollouts per seed and checkpoint. Brackets: 95% "
        "intervals. Majority: share of the decided rollouts that took their start's most frequent mode (1: one "
        f"mode only). {base.name}'s mode: share of them that took the mode which {base.name} took most from the same "
        "start with the same training seed. TV: total-variation distance to the training demonstrations "
        f"{modes.alike}, {modes.names[-1]} "
        "counted as a mode of its own. Floor: what chance alone gives with as many rollouts.",
        table(columns, rows),
    ]
    if departures:
        parts.append(f"The published figures are of another protocol and left out: {'; '.join(departures)}.")
    elif modes.published:
        parts.append(
            "Published: the share of the mode that dominates for vanilla with the same seed, over 50 rollouts from one "
            "symmetric start, after 5,000 epochs with a mirror image of every window in its batch, assignment from "
            "epoch 50 on, DDPM with 100 steps (experiment=modality_paper)."
        )
    lines = [f"- **{arm.name} is incomplete: {gap}.**" for arm in arms for gap in arm.gaps]
    for arm in arms:
        lines.append(f"- {arm.name}: demonstrations {modes.alike}: {modes.counted(arm.demonstrated)}")
    parts.append("\n".join(lines))
    if len(arms) > 1:
        rows = [[arm.name, *(_text(difference(arm, base, name), "+.3f") for name in arm.measures)] for arm in arms[1:]]
        head = f"Differences to {base.name} at the last checkpoints; where the interval contains 0, none is detected:"
        parts += [head, table(("run", *base.measures), rows)]
    return "\n\n".join(parts) + "\n"


def _modes(run: RunDirectory, starts: int | None) -> Modes:
    """The modes of a run's task, from its first `starts` or all; ValueError if it has fewer, or no modes."""
    modes = modes_of(run)
    return modes if starts is None else modes.first(starts)


def _solvers(kept: Mapping[int, Sequence[Checkpoint]], options: Mapping[str, Any]) -> list[Solver]:
    """The solvers that the options name, or the run's own; ValueError if one is unknown, or named twice."""
    checkpoint, text = next(iter(kept.values()))[0], options["solver"]
    names = [None] if text is None else text.split(",")
    if len(set(names)) < len(names):
        raise CommandError(f"solver={text}: a solver is named twice")
    return [solving.chosen_solver(checkpoint, options, name) for name in names]


def _row(arm: Arm, base: Arm) -> list[str]:
    cells = [
        arm.name,
        str(len(arm.seeds)),
        f"{arm.steps[-1]:,}",
        " / ".join(f"{share:.1%}" for share in arm.shares[-1])
        if arm.modes.are_few
        else arm.modes.counted(arm.counts[:, -1].sum((0, 1))),
    ]
    cells.append(_text(followed_first(arm, base)))
    for name in arm.measures:
        cells.append(_text(estimate(arm.values(name)[:, -1])))
        floor = arm.floor(name)
        if floor is not None:
            cells.append("" if np.isnan(floor[-1]) else f"{floor[-1]:.3f}")
    return cells


def _text(value: Interval | None, form: str = ".3f") -> str:
    return formatting.text(value, form, SHARE if form == ".3f" else None) or "nothing decided"
