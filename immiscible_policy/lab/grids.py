"""Compares one arm of a grid with its first arm, in every setting that was trained.

Coverage; `last10`: mean of the last ten evaluated checkpoints (of all where there are fewer), `last`: the last of them.
Differences are paired by seed and start; brackets are 95 % intervals for new training seeds and new starts.

Reads the JSON files that experiment=when and experiment=table2 leave in their out=, trains and evaluates nothing. A
setting is named by the words that the grid's command had beyond the experiment, the data and the arms.

  python train_policy.py experiment=when arms=vanilla,knn_k2 train_episodes=25 out=runs/when_25
  python -m immiscible_policy.lab grids files=runs/when/when.json,runs/when_25/when.json arm=knn_k2
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from immiscible_policy.cli import REQUIRED, CommandError, Option, expanded
from immiscible_policy.lab.program import Document, legend, plain, program, table
from immiscible_policy.palette import BASELINE, FAINT, GREY, INK, colours, readable
from immiscible_policy.results.experiment import Findings
from immiscible_policy.store.run import SETTINGS_OF_PLACE

KINDS = ("last10", "last")
UNNAMED = SETTINGS_OF_PLACE | {"experiment", "arms", "data", "seed", "checkpoint_every", "eval_every"}
"""Words of a grid's command that do not name its setting."""
SPOKEN = {"obs": "obs={}", "train_episodes": "{} episodes", "batch_size": "batches of {}", "steps": "{} steps"}
"""Words of a setting that its picture shows, and how."""


def measure(options: Document) -> Findings:
    """Read the grids."""
    settings: Document = {}
    for path in (expanded(part) for part in options["files"].split(",")):
        setting, figures = read_setting(path, options["arm"])
        if setting in settings:
            raise CommandError(f"files={options['files']}: two are of the setting '{setting}'; give one of them")
        settings[setting] = figures
    figures = {"arm": options["arm"], "settings": settings}
    return Findings(figures, describe(figures), draw(figures))


def read_setting(path: Path, arm: str) -> tuple[str, Document]:
    """The setting of a grid's file in words, and its figures of an arm and of the first arm.

    CommandError if the file cannot be read, is not a grid's, or lacks the arm or its seeds.
    """
    try:
        document = json.loads(path.read_text())
        arms, first = document["arms"], document["compared_with"]
        words = dict(word.split("=", 1) for word in document["command"].split() if "=" in word)
        setting = [words["experiment"], *(f"{key}={value}" for key, value in words.items() if key not in UNNAMED)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise CommandError(f"files={path}: no grid's JSON file{reason}; experiment=when writes when.json") from None
    whole = [name for name, figures in arms.items() if not figures["missing_seeds"]]
    for name in (first, arm):
        if name not in whole:
            known = ", ".join(whole)
            raise CommandError(f"files={path}: no arm {name} that was trained to its end; there are {known}")
    if arm == first:
        raise CommandError(f"arm={arm} is what the others are compared with; name another of {', '.join(whole)}")
    scores = {name: {kind: arms[name]["scores"]["coverage"][kind] for kind in KINDS} for name in (first, arm)}
    if any(score["low"] is None for of_arm in scores.values() for score in of_arm.values()):
        raise CommandError(f"files={path}: one seed and one start have no interval; train more seeds, or evaluate more")
    return " ".join(setting), {
        "file": path.name,
        "data": words.get("data", "embedded"),
        "commit": document["commit"],
        "steps": arms[arm]["steps"],
        "seeds": len(arms[arm]["seeds"]),
        "first": scores[first],
        "arm": scores[arm],
        "difference": {kind: arms[arm]["difference"]["coverage"][kind] for kind in KINDS},
    }


def describe(figures: Document) -> str:
    """A row for each setting, and how often the arm is better or worse."""
    rows = [{"setting": setting, **result} for setting, result in figures["settings"].items()]
    columns = {"setting": "{setting}", "data": "{data}", "steps": "{steps:,}", "seeds": "{seeds}"}
    columns |= {"first arm, last": "{first[last][mean]:.3f}", f"{figures['arm']}, last": "{arm[last][mean]:.3f}"}
    lines = []
    for kind in KINDS:
        columns[f"difference, {kind}"] = f"{{difference[{kind}]:+.3f}}"
        better = sum(row["difference"][kind]["low"] > 0 for row in rows)
        worse = sum(row["difference"][kind]["high"] < 0 for row in rows)
        lines.append(f"- {kind}: better in {better} of {len(rows)} settings, worse in {worse}.")
    return "\n\n".join([table(columns, rows), "\n".join(lines)])


def spoken(setting: str) -> str:
    """A setting as the picture shows it: `when train_episodes=25 lr=1e-3` is `when: 25 episodes`."""
    experiment, *words = setting.split()
    known = dict(word.split("=", 1) for word in words)
    parts = [form.format(known[key]) for key, form in SPOKEN.items() if key in known]
    return f"{experiment}: {', '.join(parts)}" if parts else experiment


def draw(figures: Document) -> Figure:
    """The settings below each other: both arms' coverage, and the differences over the training and at its end."""
    settings = dict(reversed(figures["settings"].items()))
    figure = Figure(figsize=(11.5, 0.5 * len(settings) + 1.5), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    plain(left, "coverage, last checkpoint")
    own_name = readable(figures["arm"])
    plain(right, f"{own_name} - first arm: ■ mean, ● last checkpoint\n(grey: the interval contains 0)")
    right.axvline(0, color=GREY, linewidth=1)
    (own,) = colours([figures["arm"]]).values()
    for height, result in enumerate(settings.values()):
        for colour, name, shift in ((BASELINE, "first", 0.12), (own, "arm", -0.12)):
            score = result[name]["last"]
            left.plot([score["low"], score["high"]], [height + shift] * 2, color=colour, linewidth=1.5)
            label = {"first": "first arm", "arm": own_name}[name] if height == 0 else None
            left.plot(score["mean"], height + shift, "o", color=colour, markersize=4, label=label)
        for kind, marker, shift in (("last10", "s", 0.12), ("last", "o", -0.12)):
            score = result["difference"][kind]
            colour = FAINT if score["low"] <= 0 <= score["high"] else INK
            right.plot([score["low"], score["high"]], [height + shift] * 2, color=colour, linewidth=1.5)
            right.plot(score["mean"], height + shift, marker, color=colour, markersize=4)
    legend(left, "lower left")
    left.set_yticks(range(len(settings)), [spoken(name) for name in settings])
    left.set_xlim(0, 1)
    return figure


OPTIONS = {
    "files": Option(str, REQUIRED, "JSON files of grids, separated by commas"),
    "arm": Option(str, "knn_k2", "the arm that is compared with the first one of each grid"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
