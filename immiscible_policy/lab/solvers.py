"""Evaluates the newest checkpoints of runs under many solvers, in pairs with the first run and the first solver.

Score: the task's primary metric, mean over training seeds and starts, with its 95% interval; the newest checkpoint of
each seed. Differences from the first run under the same solver, and from the first solver of the same run, are paired
by training seed and start. `on=held_out` needs no environment: the score is the energy score of the episodes that the
runs hold out (`evaluation.offline`; lower is better), paired by episode.

A solver is written with its network calls: ddim10, ddpm100, dpmpp5, euler3; trailing spacing, unless `-leading` or
`-shifted` follows; `-eta1` adds DDPM's noise to ddim or dpmpp.

  python -m immiscible_policy.lab solvers runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab solvers runs=runs/vanilla,runs/knn solvers=ddim10,ddim10-leading,renoise10
  python -m immiscible_policy.lab solvers runs=runs/vanilla,runs/knn solvers=euler1,euler2,euler10 on=held_out
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from immiscible_policy.cli import COUNT, CommandError, Option
from immiscible_policy.evaluation.agent import Agent, read_policy
from immiscible_policy.evaluation.offline import HeldOut, score
from immiscible_policy.evaluation.statistics import Array, difference_arms, interval, mean_interval
from immiscible_policy.lab.program import Document, plain, program, table
from immiscible_policy.lab.runs import RUNS, newest_policies, rolled_out, task_of
from immiscible_policy.palette import colours, label_ends, panels
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.results.experiment import Findings
from immiscible_policy.results.formatting import figures as interval_figures
from immiscible_policy.solver import SOLVERS, Solver
from immiscible_policy.store.run import RunDirectory, require_data
from immiscible_policy.tasks.task import primary

KINDS = {"score": "score", "from_run": "- {first}", "from_solver": "- {solver}"}


def measure(options: Document) -> Findings:
    """Roll every run out under every solver."""
    if not options["runs"]:
        raise CommandError("solvers needs runs=DIR,DIR, run directories of train_policy.py, the first to compare with")
    solvers = read_solvers(options["solvers"])
    policies = newest_policies(options["runs"], pictures=True)
    first = next(iter(next(iter(policies.values())).values()))
    if options["on"] not in ("starts", "held_out"):
        raise CommandError(f"on={options['on']}: use starts or held_out")
    held_out, setting = shared_held_out(options["runs"]) if options["on"] == "held_out" else (None, {})
    starts = held_out.episodes if held_out else task_of(first).starts(options["starts"], options["episodes"])
    agents: dict[tuple[str, Solver], dict[int, Agent]] = {}  # built, and so checked, before the first is rolled out
    for (run, seeds), solver in product(policies.items(), solvers):
        agents[run, solver] = {seed: Agent(*read_policy(checkpoint), solver) for seed, checkpoint in seeds.items()}
    scores: dict[tuple[str, Solver], Array] = {}
    torch.set_num_threads(1)
    for (run, solver), own in agents.items():
        by_seed = [
            energy(agent, held_out) if held_out else rolled_out(policies[run][seed], agent, starts, seed)
            for seed, agent in own.items()
        ]
        scores[run, solver] = np.array(by_seed)
        print(f"{run}  {written(solver)}  score {scores[run, solver].mean():.3f}", flush=True)
    proportion = not held_out and primary(task_of(first)).is_proportion
    figures = summarise(scores, {run: list(seeds) for run, seeds in policies.items()}, solvers, proportion) | {
        "steps": {run: [checkpoint.step for checkpoint in seeds.values()] for run, seeds in policies.items()},
        "starts": len(starts),
        "unit": "held-out episodes" if held_out else "starts",
        "metric": "energy_score" if held_out else primary(task_of(first)).name,
        **setting,
        "options": {key: value for key, value in options.items() if key != "runs"},
    }
    return Findings(figures, describe(figures), draw(figures))


def shared_held_out(runs: Mapping[str, RunDirectory]) -> tuple[HeldOut, Document]:
    """The episodes that all runs hold out of the same data, and the task, `obs`, and R^2 of the first run.

    CommandError if no episode is held out, or runs differ in them.
    """
    recipes = {name: RobotRecipe.prepare(RobotRecipe.schema.read(run)) for name, run in runs.items()}
    shared: dict[tuple[str, tuple[int, ...]], HeldOut] = {}
    for name, recipe in recipes.items():
        data = recipe.loaded
        require_data(data.path, data.content_hash, runs[name].data_hash)
        if data.held_out is None:
            raise CommandError(f"on=held_out: {name} has no held-out episodes; train with validation=0.1")
        shared[data.content_hash, tuple(data.held_out.episodes)] = data.held_out
    if len(shared) > 1:
        raise CommandError(f"on=held_out: {', '.join(runs)} do not hold out the same episodes of the same data")
    first, (held_out,) = next(iter(recipes.values())), shared.values()
    return held_out, {"task": first.config.task["name"], "obs": first.config.obs, "r2": first.r2}


def energy(agent: Agent, held_out: HeldOut) -> Array:
    """Energy scores (episodes,) of a policy."""
    rows, _ = score(agent, held_out, seed=0, checkpoint=0)
    return np.array([row.metrics["energy_score"] for row in rows])


def written(solver: Solver) -> str:
    """A solver as the command line names it, such as `ddim10-leading`."""
    return f"{solver.name}{solver.steps}{suffix(solver)}"


def suffix(solver: Solver) -> str:
    """What a spacing other than `trailing`, and an eta other than 0, add to a solver's name."""
    spacing = "" if solver.spacing == "trailing" else f"-{solver.spacing}"
    return spacing + (f"-eta{solver.eta:g}" if solver.eta else "")


def read_solvers(text: str) -> list[Solver]:
    """Read `ddim10,ddim10-leading,renoise10`; ValueError for an unusable name or number, or one given twice."""
    solvers = []
    for word in text.split(","):
        parts = re.fullmatch(r"([a-z]+)(\d+)(?:-(leading|shifted))?(?:-eta(0\.\d+|1))?", word)
        if not parts or parts[1] not in SOLVERS or not int(parts[2]):
            known = ", ".join(f"{name}10" for name in SOLVERS)
            raise CommandError(f"solvers={word}: write a solver and its network calls, such as {known}")
        solvers.append(Solver(parts[1], int(parts[2]), parts[3] or "trailing", float(parts[4] or 0)))
    if len(set(solvers)) < len(solvers):
        raise CommandError(f"solvers={text}: a solver is given twice")
    return solvers


def summarise(
    scores: Mapping[tuple[str, Solver], Array],
    seeds: Mapping[str, list[int]],
    solvers: Sequence[Solver],
    proportion: bool = False,
) -> Document:
    """Mean scores (seeds, starts), and differences from the first run and from the first solver, by run and solver.

    Intervals are those of proportions where the scores are.
    """
    first = next(iter(seeds))
    results: Document = {run: {} for run in seeds}
    for (run, solver), own in scores.items():
        result = {"score": interval_figures(mean_interval(own, proportion))}
        if run != first and (first, solver) in scores:
            arms = difference_arms(own, scores[first, solver], same_seeds=seeds[run] == seeds[first])
            result["from_run"] = interval_figures(interval(arms, proportion))
        if solver != solvers[0] and (run, solvers[0]) in scores:
            arms = difference_arms(own, scores[run, solvers[0]], same_seeds=True)
            result["from_solver"] = interval_figures(interval(arms, proportion))
        results[run][written(solver)] = result
    return {"compared_with": first, "solver_compared_with": written(solvers[0]), "runs": results}


def describe(figures: Document) -> str:
    """Tables of scores and of both kinds of differences, where there are any."""
    runs, parts = figures["runs"], [f"{figures['starts']} {figures['unit']}."]
    solvers = list(dict.fromkeys(solver for result in runs.values() for solver in result))
    for kind, title in KINDS.items():
        rows = [
            {"run": run, **{solver: values[kind] for solver, values in result.items() if kind in values}}
            for run, result in runs.items()
        ]
        title = title.format(first=figures["compared_with"], solver=figures["solver_compared_with"])
        form = ".3f" if kind == "score" else "+.3f"
        columns = {title: "{run}", **{solver: f"{{{solver}:{form}}}" for solver in solvers}}
        if any(len(row) > 1 for row in rows):
            parts.append(table(columns, [row for row in rows if len(row) > 1]))
    return "\n\n".join(parts)


def draw(figures: Document) -> Figure:
    """Score against network calls for each solver, a colour for each run; the runs a little apart."""
    points: dict[str, dict[str, dict[int, Document]]] = {}
    for run, result in figures["runs"].items():
        for text, values in result.items():
            (solver,) = read_solvers(text)
            name = solver.name + suffix(solver)
            points.setdefault(name, {}).setdefault(run, {})[solver.steps] = values["score"]
    several = {name: by_run for name, by_run in points.items() if any(len(steps) > 1 for steps in by_run.values())}
    points, on_starts = several or points, figures["unit"] == "starts"  # a solver measured once makes no curve
    metric = figures["metric"].replace("_", " ") + ("" if on_starts else ", lower is better")
    figure, axes = panels(len(points), title=f"{figures['starts']} {figures['unit']}; bars: 95% intervals")
    colour = colours(figures["runs"])
    for panel, (name, by_run) in zip(axes, points.items(), strict=True):
        plain(panel, name.replace("-", ", ") if len(points) > 1 else "", "network calls per chunk", metric)
        ends: dict[str, tuple[float, float]] = {}
        for number, (run, by_steps) in enumerate(by_run.items()):
            at = sorted(by_steps)
            places = [steps * 1.025 ** (number - len(by_run) / 2) for steps in at]
            low, middle, high = (
                np.array([by_steps[steps][key] for steps in at], float) for key in ("low", "mean", "high")
            )
            look: dict[str, Any] = {"color": colour[run], "capsize": 2}
            ends[run] = (at[-1] * 1.025 ** (len(by_run) / 2), float(middle[-1]))
            panel.errorbar(places, middle, [middle - low, high - middle], marker="o", markersize=4, linewidth=1, **look)
        ticks = sorted({steps for by_steps in by_run.values() for steps in by_steps})
        panel.set(xscale="log", xlim=(0.75 * ticks[0], 1.33 * ticks[-1]))
        means = [scores["mean"] for by_steps in by_run.values() for scores in by_steps.values()]
        panel.set_ylim(0 if min(means) >= 0 else None, 1 if on_starts and max(means) <= 1 else None)
        panel.set_xticks(ticks, [str(steps) for steps in ticks])
        panel.minorticks_off()
        label_ends(panel, ends, colour)
    return figure


OPTIONS = {
    "runs": RUNS,
    "solvers": Option(str, "ddim10,ddim5,ddim16,ddpm100,dpmpp2,dpmpp5,dpmpp10", "solvers with their network calls"),
    "episodes": Option(COUNT, 50, "starts"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds"),
    "on": Option(str, "starts", "starts: rollouts; held_out: the energy score of the episodes that the runs hold out"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
