"""Trained policies under other samplers: schemes, step counts, and noise that follows the law of training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.evaluation.agent import Agent, load_policy
from immiscible_policy.evaluation.rollout import ActingPolicy, evaluate
from immiscible_policy.evaluation.starts import parse_starts
from immiscible_policy.evaluation.statistics import Array, difference_arms, interval, mean_interval
from immiscible_policy.lab.data import RUNS
from immiscible_policy.lab.steps import own_selector, policy_checkpoints
from immiscible_policy.lab.training_law import LAWS, TrainingLawAgent
from immiscible_policy.noise.knn import KNN
from immiscible_policy.noise.vanilla import Vanilla
from immiscible_policy.palette import COLOURS, panels
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.interval import figures as figures_of
from immiscible_policy.results.interval import text
from immiscible_policy.results.table import table
from immiscible_policy.solver import SOLVERS, Solver
from immiscible_policy.store.checkpoint import Checkpoint

USAGE = """\
usage: python -m immiscible_policy.lab samplers runs=DIR,DIR [KEY=VALUE ...]

Rolls the newest checkpoints of runs out under many samplers; compares runs, and samplers, with the first in pairs.

A sampler is written as a scheme and its steps: ddim10, ddpm100, dpmpp5; drafted10 and renoised10 sample with DDIM and
noise that follows the law which the policy was trained with, for runs of noise=vanilla and noise=knn (see
immiscible_policy/lab/training_law.py). Differences from the first run under the same sampler, and from the first
sampler of the same run, are paired by training seed and start.

  python -m immiscible_policy.lab samplers runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab samplers runs=runs/vanilla,runs/knn samplers=ddim10,ddpm100
"""
OPTIONS = {
    "runs": RUNS,
    "samplers": Option(str, "ddim10,ddim5,ddim16,ddpm100,dpmpp2,dpmpp5,dpmpp10", "schemes with their steps"),
    "episodes": Option(int, 50, "starts"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds"),
}
METRICS = ("coverage", "reward")
Document = dict[str, Any]


class Scheme(NamedTuple):
    """A sampler as written.

    Attributes:
        name: One of `SOLVERS`, or of `LAWS`.
        steps: Denoising steps.
    """

    name: str
    steps: int

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{self.name}{self.steps}"


Scores = dict[str, Array]
"""Scores (seeds, starts) by metric."""


def measure(options: Document) -> Findings:
    """Roll every run out under every sampler.

    Raises:
        ValueError: If an option is unusable, or a run cannot be read.
    """
    if not options["runs"]:
        raise CommandError("samplers needs runs=DIR,DIR, run directories of train_policy.py, the first to compare with")
    schemes = read_schemes(options["samplers"])
    starts = parse_starts(options["starts"], options["episodes"])
    policies = policy_checkpoints([Path(run) for run in options["runs"].split(",")])
    seeds = {run: [checkpoint.metadata["seed"] for checkpoint in each] for run, each in policies.items()}
    agents = {
        (run, scheme): [_agent(checkpoint, scheme) for checkpoint in found]
        for run, found in policies.items()
        for scheme in schemes
        if all(_takes(checkpoint, scheme) for checkpoint in found)
    }  # built, and so checked, before the first is rolled out
    found: dict[tuple[str, Scheme], Scores] = {}
    for (run, scheme), each in agents.items():
        found[run, scheme] = _scores(each, policies[run], seeds[run], starts)
        print(f"{run}  {scheme.text}  coverage {found[run, scheme]['coverage'].mean():.3f}", flush=True)
    figures = summarise(found, seeds, schemes) | {
        "steps": {run: [checkpoint.step for checkpoint in each] for run, each in policies.items()},
        "starts": len(starts),
        "options": {key: value for key, value in options.items() if key != "runs"},
    }
    return Findings(figures, describe(figures), draw(figures))


def read_schemes(text: str) -> list[Scheme]:
    """Read `ddim10,renoised10`.

    Raises:
        CommandError: If a name or a number of steps is unusable, or one is given twice.
    """
    schemes = []
    for word in text.split(","):
        parts = re.fullmatch(r"([a-z]+)(\d+)", word)
        if not parts or parts[1] not in (*SOLVERS, *LAWS) or not int(parts[2]):
            known = ", ".join(f"{name}10" for name in (*SOLVERS, *LAWS))
            raise CommandError(f"samplers={word}: write a scheme and its steps, such as {known}")
        schemes.append(Scheme(parts[1], int(parts[2])))
    if len(set(schemes)) < len(schemes):
        raise CommandError(f"samplers={text}: a sampler is given twice")
    return schemes


def summarise(
    found: Mapping[tuple[str, Scheme], Scores], seeds: Mapping[str, list[int]], schemes: Sequence[Scheme]
) -> Document:
    """Means, and differences from the first run and from the first sampler, by run, sampler and metric.

    Args:
        found: Scores of each run under each sampler that it takes.
        seeds: The training seeds of the runs, the first of which is compared with.
        schemes: The samplers, the first of which is compared with.
    """
    first = next(iter(seeds))
    results: Document = {run: {} for run in seeds}
    for run, scheme in [(run, scheme) for run in seeds for scheme in schemes if (run, scheme) in found]:
        of_run = found.get((first, scheme)) if run != first else None
        of_sampler = found.get((run, schemes[0])) if scheme != schemes[0] else None
        results[run][scheme.text] = {
            metric: {"score": figures_of(mean_interval(own))}
            | _difference("from_run", own, of_run, metric, seeds[run] == seeds[first])
            | _difference("from_sampler", own, of_sampler, metric, True)
            for metric, own in found[run, scheme].items()
        }
    return {"compared_with": first, "sampler_compared_with": schemes[0].text, "runs": results}


def _difference(name: str, own: Array, base: Scores | None, metric: str, same_seeds: bool) -> Document:
    """The difference of scores (seeds, starts) from others, if there are any, by its name."""
    if base is None:
        return {}
    return {name: figures_of(interval(difference_arms(own, base[metric], same_seeds=same_seeds)))}


def _takes(checkpoint: Checkpoint, scheme: Scheme) -> bool:
    """Whether a sampler means anything for a policy: those of `LAWS` need a selector that chooses within a sample."""
    config = checkpoint.metadata.get("config", {})
    plain = config.get("select_for", "action") == "action" and config.get("obs") != "image"
    return scheme.name not in LAWS or (plain and config.get("noise", {}).get("name") in ("vanilla", "knn"))


def _agent(checkpoint: Checkpoint, scheme: Scheme) -> ActingPolicy:
    policy, spec = load_policy(checkpoint)
    if scheme.name not in LAWS:
        return Agent(policy, spec, Solver(scheme.name, scheme.steps))
    select = own_selector(checkpoint)
    assert isinstance(select, KNN | Vanilla)
    return TrainingLawAgent(Agent(policy, spec, Solver("ddim", scheme.steps)), scheme.name, select)


def _scores(
    agents: Sequence[ActingPolicy], checkpoints: Sequence[Checkpoint], seeds: Sequence[int], starts: Sequence[int]
) -> Scores:
    """Scores (seeds, starts) of a run's policies."""
    torch.set_num_threads(1)
    rows = [
        evaluate(agent, starts, seed=seed, checkpoint=checkpoint.step)
        for agent, checkpoint, seed in zip(agents, checkpoints, seeds, strict=True)
    ]
    return {metric: np.array([[row.metrics[metric] for row in of_seed] for of_seed in rows]) for metric in METRICS}


def describe(figures: Document) -> str:
    """The findings as Markdown."""
    first, sampler, runs = figures["compared_with"], figures["sampler_compared_with"], figures["runs"]
    schemes = list(dict.fromkeys(scheme for found in runs.values() for scheme in found))

    def rows(kind: str) -> list[list[str]]:
        cells = {run: [_cell(found.get(scheme), kind) for scheme in schemes] for run, found in runs.items()}
        return [[run, *each] for run, each in cells.items() if any(each)]

    parts = [table(["coverage", *schemes], rows("score"))]
    if rows("from_run"):
        parts.append(table([f"less {first}", *schemes], rows("from_run")))
    if rows("from_sampler"):
        parts.append(table([f"less {sampler}", *schemes], rows("from_sampler")))
    tables = "\n\n".join(parts)
    return f"""\
## The same policies under other samplers

Coverage of the goal over {figures["starts"]} starts, mean over training seeds, with its 95 % interval; the newest
checkpoint of each seed. `drafted` and `renoised` sample with noise that follows the law of the policy's own training,
`drafted` in twice the steps; with plain noise `drafted` starts anew, and `renoised` is the control.

{tables}

Differences are paired by training seed and start; an interval that holds 0 shows no difference.
"""


def _cell(found: Document | None, kind: str) -> str:
    return "" if found is None else text(found["coverage"].get(kind), ".3f" if kind == "score" else "+.3f")


def draw(figures: Document) -> Figure:
    """Coverage against steps for each scheme, a colour for each run; the runs a little apart."""
    runs = figures["runs"]
    schemes = list(dict.fromkeys(re.sub(r"\d+", "", scheme) for found in runs.values() for scheme in found))
    figure, axes = panels(len(schemes), title=f"{figures['starts']} starts; bars: 95 % intervals")
    for panel, scheme in zip(axes, schemes, strict=True):
        ticks = set()
        for number, (colour, (run, found)) in enumerate(zip(COLOURS, runs.items(), strict=False)):
            points = _points(found, scheme)
            ticks |= {steps for steps, _ in points}
            places = [steps * 1.025 ** (number - len(runs) / 2) for steps, _ in points]
            means = [score["mean"] for _, score in points]
            ends = [(score["mean"], score["mean"]) if score["low"] is None else (score["low"], score["high"])
                    for _, score in points]  # fmt: skip
            spans = np.abs(np.reshape(ends, (-1, 2)) - np.reshape(means, (-1, 1))).T
            panel.errorbar(
                places, means, spans, color=colour, marker="o", markersize=4, linewidth=1, capsize=2, label=run
            )
        panel.set(title=scheme, xscale="log", xlabel="denoising steps", ylabel="coverage", ylim=(0, 1))
        panel.set_xlim(0.75 * min(ticks), 1.33 * max(ticks))
        panel.set_xticks(sorted(ticks), [str(steps) for steps in sorted(ticks)])
        panel.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right upper")
    return figure


def _points(found: Document, scheme: str) -> list[tuple[int, Document]]:
    """Steps and coverage of a run under a scheme, the fewest steps first."""
    named = [(re.fullmatch(rf"{scheme}(\d+)", name), each) for name, each in found.items()]
    return sorted((int(match[1]), each["coverage"]["score"]) for match, each in named if match)


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
