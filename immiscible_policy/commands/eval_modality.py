"""`python eval_modality.py`: do policies keep both ways round that mirrored demonstrations show?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from immiscible_envs.modes import MODES, symmetric_starts
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable
from immiscible_policy.cli import run as run_command
from immiscible_policy.commands import solving
from immiscible_policy.lab.modality.arms import (
    MEASURES,
    MOST_REPETITIONS,
    Arm,
    difference,
    estimate,
    measure,
    training_modes,
)
from immiscible_policy.lab.modality.modes import Array, shares
from immiscible_policy.lab.modality.plots import evolution_figure, paths_figure
from immiscible_policy.palette import COLOURS
from immiscible_policy.provenance import provenance, without_places
from immiscible_policy.results.interval import figures, text
from immiscible_policy.results.table import table
from immiscible_policy.results.writer import save_figure
from immiscible_policy.solver import Solver
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, runs_in
from immiscible_policy.training.options import resolve_device

USAGE = """\
usage: python eval_modality.py runs=DIR[,DIR...] [KEY=VALUE ...]

Which way round do policies turn the T from starts that favour neither way? Each DIR is a run, or a directory of runs
(vanilla first), each under every sampler named; differences are to the first run under the first sampler.

  python train_policy.py experiment=modality noise=vanilla seed=0..4 out=runs/modality/vanilla
  python train_policy.py experiment=modality noise=linear seed=0..4 out=runs/modality/linear
  python eval_modality.py runs=runs/modality/vanilla,runs/modality/linear out=modality
  python eval_modality.py runs=runs/modality/vanilla solver=ddim,renoise checkpoints=last out=solvers
"""

OPTIONS = {
    "runs": Option(str, REQUIRED, "run directories, or directories of runs, separated by commas"),
    "out": Option(Path, Path("modality"), "directory for modality.json, modality.md, modality.png and paths.png"),
    "repetitions": Option(int, 25, "rollouts per start, R"),
    "checkpoints": Option(str, "all", "all that every seed keeps, or last"),
    **solving.OPTIONS,
    "device": Option(str, "cpu", "cpu or cuda"),
}

UNDECIDED = "nothing decided"

PUBLISHED = (
    ("published: vanilla, 10 seeds", "0.976", "0.9516"),
    ("published: assignment, 10 seeds", "0.65", "0.9539"),
)


def find_runs(names: str, checkpoints: str) -> dict[Path, dict[int, list[Checkpoint]]]:
    """The runs that were asked for, and of each the checkpoints that all of its seeds keep.

    Args:
        names: Directories separated by commas, each a run or a directory of runs.
        checkpoints: `all`, or `last` for the newest of these.

    Raises:
        CommandError: If a directory holds no run, two have one name, or the seeds of a run share no checkpoint.
    """
    runs = [run for part in names.split(",") for run in _runs_in(Path(part).expanduser())]
    called = [run.name for run in runs]
    if len(set(called)) < len(called):
        raise CommandError(f"runs={names}: two runs have the same name among {', '.join(called)}")
    return {run: _shared(run, checkpoints) for run in runs}


def as_json(arms: Sequence[Arm]) -> str:
    """Everything counted, and the measures at every checkpoint; null where there is none."""
    origin = provenance()
    content = {
        **origin,
        "command": without_places(origin["command"]),
        "modes": MODES,
        "starts": symmetric_starts().tolist(),
        "repetitions": arms[0].repetitions,
        "arms": [_arm_content(arm, arms[0]) for arm in arms],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def markdown(arms: Sequence[Arm]) -> str:
    """The last checkpoints as a table beside the published figures, and the differences to the first run."""
    base = arms[0]
    columns = ("run", "seeds", "step", "clockwise / counter-clockwise / undecided", "majority", "its floor",
               "TV to demonstrations", "its floor", "coverage")  # fmt: skip
    rows = [_row(arm) for arm in arms]
    rows += [[name, "", "", "", major, "", "", "", coverage] for name, major, coverage in PUBLISHED]
    lines = [
        "# Which way round from symmetric starts",
        "",
        f"{len(symmetric_starts())} starts x {base.repetitions} rollouts per seed and checkpoint. Brackets: 95 % "
        "intervals. Majority: share of the decided rollouts that took their start's more frequent direction (0.5 "
        "balanced, 1 one way only). TV: total-variation distance to the training demonstrations that begin nearly "
        "upside down, undecided counted as a third mode. Floor: what pure chance gives with as many rollouts.",
        "",
        table(columns, rows),
        "",
        "The published figures are from one symmetric start, their definition of the majority is not stated.",
        "",
        *(f"- **{arm.name} is incomplete: {gap}.**" for arm in arms for gap in arm.gaps),
        *(f"- {arm.name}: {_demonstrations(arm)}" for arm in arms),
        "",
    ]
    if len(arms) > 1:
        differences = {arm.name: [difference(arm, base, each) for each in MEASURES] for arm in arms[1:]}
        rows = [[name, *(text(each, "+.3f") or UNDECIDED for each in found)] for name, found in differences.items()]
        head = f"Differences to {base.name} at the last checkpoints; an interval that holds 0 shows no difference:"
        lines += [head, "", table(("run", *MEASURES), rows), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `eval_modality.py`.

    Args:
        argv: Words of the command line; those of the process by default, with a mistake shown as one line.

    Returns:
        Exit code 0.

    Raises:
        ValueError: For a mistake in argv, or runs that cannot be read.
    """
    if argv is None:
        run_command(main)
    options = parse(argv, OPTIONS, USAGE)
    _check(options)
    runs = find_runs(options["runs"], options["checkpoints"])
    for run in runs:
        training_modes(run)  # refuses unreadable demonstrations before the first rollout
    solvers = {run: _solvers(kept, options) for run, kept in runs.items()}
    if sum(map(len, solvers.values())) > len(COLOURS):
        raise CommandError(
            f"{len(runs)} runs under {len(solvers[next(iter(runs))])} solvers cannot be told apart in one picture; "
            f"{len(COLOURS)} can"
        )
    arms = []
    with Console(stderr=True).status("") as status:
        for run, kept in runs.items():
            for solver in solvers[run]:
                arm = measure(run, kept, options["repetitions"], solver, options["device"], status.update)
                several = f" {solver.name}{solver.steps}" if len(solvers[run]) > 1 else ""
                arms.append(replace(arm, name=arm.name + several))
    write(options["out"], arms)
    print(markdown(arms))
    print(f"saved in {options['out']}: modality.json, modality.md, modality.png, paths.png")
    return 0


def write(out: Path, arms: Sequence[Arm]) -> None:
    """Write `modality.json`, `modality.md`, `modality.png` and `paths.png`.

    Args:
        out: Directory, created if absent.
        arms: What was measured.
    """
    write_atomically(out / "modality.json", as_json(arms).encode())
    write_atomically(out / "modality.md", markdown(arms).encode())
    save_figure(evolution_figure(arms), out / "modality.png")
    save_figure(paths_figure(arms), out / "paths.png")


def _check(options: dict[str, Any]) -> None:
    if options["checkpoints"] not in ("all", "last"):
        raise CommandError(f"checkpoints={options['checkpoints']}: known are all, last")
    if not 1 <= options["repetitions"] <= MOST_REPETITIONS:
        raise CommandError(f"repetitions={options['repetitions']}: use 1 to {MOST_REPETITIONS:,}")
    options["device"] = resolve_device(options["device"])
    if (options["out"] / "modality.json").exists():
        raise CommandError(f"out={options['out']} holds a modality.json already; name a new directory")
    require_writable("out", options["out"] / "modality.json")


def _runs_in(directory: Path) -> list[Path]:
    if RunDirectory(directory).exists:
        return [directory]
    runs = sorted((run.path for run in runs_in(directory)), key=lambda run: (run.name != "vanilla", run.name))
    if not runs:
        raise CommandError(f"runs={directory}: neither a run (with config.yaml) nor a directory of runs")
    return runs


def _solvers(kept: Mapping[int, Sequence[Checkpoint]], options: Mapping[str, Any]) -> list[Solver]:
    """The solvers that were asked for, or the run's own.

    Raises:
        CommandError: If one is named twice.
        ValueError: If one is unknown.
    """
    checkpoint, names = next(iter(kept.values()))[0], solving.solver_name(options)
    asked = [None] if names is None else names.split(",")
    if len(set(asked)) < len(asked):
        raise CommandError(f"solver={names}: a solver is named twice")
    return [solving.chosen_solver(checkpoint, options, name) for name in asked]


def _shared(run: Path, checkpoints: str) -> dict[int, list[Checkpoint]]:
    """Of each seed the checkpoints whose steps every seed keeps."""
    directory = RunDirectory(run)
    kept = {seed: directory.seed(seed).checkpoints() for seed in directory.seeds()}
    steps = sorted(set.intersection(*({each.step for each in found} for found in kept.values()))) if kept else []
    if not steps:
        raise CommandError(
            f"runs={run}: its {len(kept)} seeds with checkpoints keep none at the same step; train them first"
        )
    chosen = steps if checkpoints == "all" else steps[-1:]
    return {seed: [each for each in kept[seed] if each.step in chosen] for seed in sorted(kept)}


def _arm_content(arm: Arm, base: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "run": Path(arm.path).name,
        "origin": RunDirectory(arm.path).origin,
        "seeds": arm.seeds,
        "steps": arm.steps,
        "gaps": arm.gaps,
        "demonstrated": arm.demonstrated.tolist(),
        "counts": arm.counts.tolist(),
        "coverage_by_start": arm.coverage.tolist(),
        "shares": shares(arm.counts.sum((0, 2))).tolist(),
        **{each: _measure_content(arm, each) for each in MEASURES},
        "difference_to": None if arm is base else base.name,
        "difference": {} if arm is base else {each: figures(difference(arm, base, each)) for each in MEASURES},
    }


def _measure_content(arm: Arm, name: str) -> list[dict[str, Any]]:
    """One measure at every checkpoint."""
    values, floor = arm.values(name), arm.floor(name)
    content = []
    for index, step in enumerate(arm.steps):
        by_seed = [_number(value) for value in values[:, index].mean(1)]
        chance = {} if floor is None else {"floor": _number(floor[index])}
        content.append({"step": step, **figures(estimate(values[:, index])), "by_seed": by_seed} | chance)
    return content


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _row(arm: Arm) -> list[str]:
    major, distance, coverage = (estimate(arm.values(each)[:, -1]) for each in MEASURES)
    floors = [arm.floor(each) for each in MEASURES[:2]]
    modes = " / ".join(f"{share:.1%}" for share in shares(arm.counts[:, -1].sum((0, 1))))
    scored = [text(found, cut=(0.0, 1.0)) or UNDECIDED for found in (major, distance, coverage)]
    at = [scored[0], _share(floors[0]), scored[1], _share(floors[1]), scored[2]]
    return [arm.name, str(len(arm.seeds)), f"{arm.steps[-1]:,}", modes, *at]


def _share(floor: Array | None) -> str:
    return "" if floor is None or math.isnan(floor[-1]) else f"{floor[-1]:.3f}"


def _demonstrations(arm: Arm) -> str:
    counts = ", ".join(f"{count} {mode}" for count, mode in zip(arm.demonstrated, MODES, strict=True))
    return f"demonstrations that begin nearly upside down: {counts}"
