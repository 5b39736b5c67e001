"""Shows what selection gains against how much the observation says of the action, for each number of network calls.

The energy score is lower for better samples. A difference is an arm's score minus that of the first run with as many
calls, in percent of the latter; brackets are 95% intervals of the difference for new training seeds and episodes. R^2
is the share of the actions' variance on held-out episodes that a linear prediction from the observation explains.

Reads the JSON files that `lab solvers on=held_out` leaves, one for each setting; trains and evaluates nothing.

  python -m immiscible_policy.lab dial files=nothing/solvers.json,agent/solvers.json,keypoints/solvers.json
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from immiscible_policy.cli import REQUIRED, CommandError, Option, expanded
from immiscible_policy.lab.program import Document, plain, program, table
from immiscible_policy.lab.solvers import read_solvers
from immiscible_policy.palette import GREY, colours, panels, readable
from immiscible_policy.results.experiment import Findings


def measure(options: Document) -> Findings:
    """Read the settings and put them in the order of R^2."""
    settings = [read_setting(expanded(part)) for part in options["files"].split(",")]
    shared = [set(setting["differences"]) for setting in settings]
    solvers = [solver for solver in settings[0]["differences"] if all(solver in known for known in shared)]
    if not solvers:
        raise CommandError(f"files={options['files']}: no solver is in all of them; evaluate all with the same ones")
    figures = {"solvers": solvers, "settings": sorted(settings, key=lambda setting: setting["r2"])}
    return Findings(figures, describe(figures), draw(figures))


def read_setting(path: Path) -> Document:
    """The setting of a file and its differences in percent, by solver and arm; CommandError if it holds none."""
    try:
        document = json.loads(path.read_text())
        found = document["figures"]
        runs, first = dict(found["runs"]), found["compared_with"]
        setting = {key: found[key] for key in ("task", "obs", "r2")}
        plain_scores = {solver: values["score"]["mean"] for solver, values in runs.pop(first).items()}
        setting["commit"] = document["commit"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise CommandError(f"files={path}: no file of `lab solvers on=held_out`{reason}") from None
    if setting["r2"] is None or not runs:
        raise CommandError(f"files={path}: needs actions that vary, and two runs or more")
    differences = {
        solver: {
            arm: {key: 100 * results[solver]["from_run"][key] / score for key in ("mean", "low", "high")}
            for arm, results in runs.items()
        }
        for solver, score in plain_scores.items()
    }
    return setting | {"first": first, "scores": plain_scores, "differences": differences}


def describe(figures: Document) -> str:
    """A row for each arm and number of calls, a column for each setting."""
    settings = {f"setting_{number}": setting for number, setting in enumerate(figures["settings"])}
    rows = []
    for arm, solver in product(arms(figures), figures["solvers"]):
        by_setting = {key: setting["differences"][solver].get(arm) for key, setting in settings.items()}
        rows.append({"arm": arm, "solver": solver, **by_setting})
    columns = {"difference, %": "{arm}", "solver": "{solver}"}
    return table(columns | {label(setting): f"{{{key}:+.1f}}" for key, setting in settings.items()}, rows)


def label(setting: Document) -> str:
    """What a policy saw, and how much it says."""
    return f"{setting['task']} obs={setting['obs']} (R^2 {setting['r2']:.2f})"


def arms(figures: Document) -> list[str]:
    """All arms, in the order in which they were given."""
    solver = figures["solvers"][0]
    return list(dict.fromkeys(arm for setting in figures["settings"] for arm in setting["differences"][solver]))


def draw(figures: Document) -> Figure:
    """A panel for each solver: differences by setting, one colour for each arm."""
    settings, names = figures["settings"], arms(figures)
    baselines = dict.fromkeys(readable(setting["first"]) for setting in settings)
    title = f"energy score - that of {' or '.join(baselines)}, %: below 0 is better; bars: 95% intervals"
    figure, axes = panels(len(figures["solvers"]), title=title, width=4.2)
    colour = colours(names)
    for panel, text in zip(axes, figures["solvers"], strict=True):
        (solver,) = read_solvers(text)
        plain(panel, f"{solver.steps} network call{'s' if solver.steps > 1 else ''}")
        panel.set_yscale("symlog", linthresh=10)
        panel.yaxis.set_major_formatter("{x:+g}")
        if panel is not axes[0]:
            panel.sharey(axes[0])
        panel.axhline(0, color=GREY, linewidth=1)
        for number, arm in enumerate(names):
            shift = 0.12 * (number - (len(names) - 1) / 2)
            points = [
                (place + shift, setting["differences"][text][arm])
                for place, setting in enumerate(settings)
                if arm in setting["differences"][text]
            ]
            at, results = zip(*points, strict=True)
            means = [result["mean"] for result in results]
            bars = [[r["mean"] - r["low"] for r in results], [r["high"] - r["mean"] for r in results]]
            look = {"color": colour[arm], "marker": "o", "markersize": 4, "linestyle": "none", "capsize": 2}
            panel.errorbar(at, means, bars, label=readable(arm), **look)  # type: ignore[arg-type]
        tasks = {setting["task"] for setting in settings}
        seen = [[setting["obs"], *([setting["task"]] if len(tasks) > 1 else [])] for setting in settings]
        ticks = ["\n".join([*of, f"R² {s['r2']:.2f}"]) for of, s in zip(seen, settings, strict=True)]
        panel.set_xticks(range(len(settings)), ticks)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right center")
    return figure


OPTIONS = {"files": Option(str, REQUIRED, "JSON files of `lab solvers on=held_out`, separated by commas")}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
