"""One arm of a grid in many settings: does what was found in one hold in the others?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immiscible_policy.cli import REQUIRED, CommandError, Option
from immiscible_policy.lab.report import table
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.grid import cell
from immiscible_policy.store.run import SETTINGS_OF_PLACE

USAGE = """\
usage: python -m immiscible_policy.lab settings grids=FILE,FILE [KEY=VALUE ...]

Holds one arm against the first of its grid in every setting in which the grid was trained.

Reads the JSON files that experiment=when and experiment=table2 leave in their out=, trains and evaluates nothing. A
setting is named by the words that the grid's command had beyond the experiment, the data and the arms.

  python train_policy.py experiment=when arms=vanilla,knn_k2 train_episodes=25 out=runs/when_25
  python -m immiscible_policy.lab settings grids=runs/when/when.json,runs/when_25/when.json arm=knn_k2
"""
OPTIONS = {
    "grids": Option(str, REQUIRED, "JSON files of grids, separated by commas"),
    "arm": Option(str, "knn_k2", "the arm that is held against the first one of each grid"),
}
KINDS = ("last10", "last")
UNSAID = SETTINGS_OF_PLACE | {"experiment", "arms", "data", "seed", "checkpoint_every", "eval_every"}
Document = dict[str, Any]


def measure(options: Document) -> Findings:
    """Read the grids.

    Raises:
        CommandError: If a file is no grid's, or lacks the arm or the seeds of it; or if two have the same setting.
    """
    found: Document = {}
    for path in (Path(part).expanduser() for part in options["grids"].split(",")):
        setting, figures = read_setting(path, options["arm"])
        if setting in found:
            raise CommandError(f"grids={options['grids']}: two are of the setting '{setting}'; give one of them")
        found[setting] = figures
    figures = {"arm": options["arm"], "settings": found}
    return Findings(figures, describe(figures), draw(figures))


def read_setting(path: Path, arm: str) -> tuple[str, Document]:
    """What a grid's file says of an arm and of the first arm.

    Args:
        path: The JSON file.
        arm: Name of the arm.

    Returns:
        The setting in words, and its figures.

    Raises:
        CommandError: If the file cannot be read, is no grid's, or lacks the arm or its seeds.
    """
    try:
        document = json.loads(path.read_text())
        arms, first, words = document["arms"], document["compared_with"], _words(document["command"])
        setting = [words["experiment"], *(f"{key}={value}" for key, value in words.items() if key not in UNSAID)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise CommandError(f"grids={path}: no grid's JSON file{reason}; experiment=when writes when.json") from None
    whole = [name for name, each in arms.items() if not each["missing_seeds"]]
    for name in (first, arm):
        if name not in whole:
            known = ", ".join(whole)
            raise CommandError(f"grids={path}: no arm {name} that was trained to its end; there are {known}")
    if arm == first:
        raise CommandError(f"arm={arm} is what the others are compared with; name another of {', '.join(whole)}")
    kept = {name: {kind: arms[name]["scores"]["coverage"][kind] for kind in KINDS} for name in (first, arm)}
    if any(found["low"] is None for of_arm in kept.values() for found in of_arm.values()):
        raise CommandError(f"grids={path}: one seed and one start have no interval; train more seeds, or evaluate more")
    return " ".join(setting), {
        "file": path.name,
        "data": words.get("data", "embedded"),
        "commit": document["commit"],
        "steps": arms[arm]["steps"],
        "seeds": len(arms[arm]["seeds"]),
        "first": kept[first],
        "arm": kept[arm],
        "difference": {kind: arms[arm]["difference"]["coverage"][kind] for kind in KINDS},
    }


def _words(command: str) -> dict[str, str]:
    """The `key=value` words of a command line."""
    return dict(word.split("=", 1) for word in command.split() if "=" in word)


def describe(figures: Document) -> str:
    """The findings as Markdown."""
    arm, settings = figures["arm"], figures["settings"]
    rows = [
        [
            setting,
            each["data"],
            f"{each['steps']:,}",
            str(each["seeds"]),
            *(f"{each[name]['last']['mean']:.3f}" for name in ("first", "arm")),
            *(cell(each["difference"][kind], signed=True) for kind in KINDS),
        ]
        for setting, each in settings.items()
    ]
    head = ["setting", "data", "steps", "seeds", "first arm, last", f"{arm}, last"]
    head += [f"difference, {kind}" for kind in KINDS]
    return f"""\
## {arm} against the first arm, in every setting

Coverage; `last10`: mean of the last ten evaluated checkpoints (of all where there are fewer), `last`: the last of them.
Differences are paired by seed and start, brackets are 95 % intervals for new training seeds and new starts.

{table(head, rows)}

{chr(10).join(_count(settings, kind) for kind in KINDS)}
"""


def _count(settings: Mapping[str, Document], kind: str) -> str:
    found = [each["difference"][kind] for each in settings.values()]
    above, below = sum(each["low"] > 0 for each in found), sum(each["high"] < 0 for each in found)
    return f"- {kind}: of {len(found)} settings better in {above}, worse in {below}, no difference shown in the others."


def draw(figures: Document) -> Figure:
    """The settings below each other: both arms' coverage, and the differences over the training and at its end."""
    settings = dict(reversed(figures["settings"].items()))
    figure = Figure(figsize=(11.5, 0.42 * len(settings) + 1.5), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvline(0, color=GREY, linewidth=1)
    for height, each in enumerate(settings.values()):
        for colour, name, label, shift in (
            (COLOURS[0], "first", "first arm", 0.12),
            (COLOURS[1], "arm", figures["arm"], -0.12),
        ):
            _bar(left, each[name]["last"], height + shift, colour, "o", label if height == 0 else None)
        for kind, marker, shift in (("last10", "s", 0.12), ("last", "o", -0.12)):
            found = each["difference"][kind]
            colour = "#999999" if found["low"] <= 0 <= found["high"] else "#000000"
            _bar(right, found, height + shift, colour, marker, None)
    left.legend(fontsize=7, frameon=False, loc="lower left")
    titles = ("coverage, last checkpoint", f"{figures['arm']} less the first arm: ■ last10, ● last (grey: null)")
    for axes, title in zip((left, right), titles, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.set_title(title, fontsize=9, loc="left")
    left.set_yticks(range(len(settings)), list(settings))
    left.set_xlim(0, 1)
    return figure


def _bar(axes: Axes, found: Document, height: float, colour: str, marker: str, label: str | None) -> None:
    """A mean with its interval, lying."""
    ends: Sequence[float] = (found["low"], found["high"])
    axes.plot(ends, [height, height], color=colour, linewidth=1.5)
    axes.plot([found["mean"]], [height], color=colour, marker=marker, markersize=4, linewidth=0, label=label)


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
