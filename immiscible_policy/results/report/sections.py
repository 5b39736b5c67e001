"""What stands on each tab, as HTML. Whatever a run directory says is escaped where it enters a page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import yaml

from immiscible_policy.evaluation.scores import LAST
from immiscible_policy.evaluation.statistics import Interval, mean_interval
from immiscible_policy.provenance import without_places
from immiscible_policy.results.compare import Comparison, Result
from immiscible_policy.results.plots import LABELS
from immiscible_policy.results.report import figures
from immiscible_policy.results.report.gather import (
    MEASURES,
    Arm,
    Curve,
    Evidence,
    Modes,
    Pairing,
    by_start,
    curve,
    metric_names,
)
from immiscible_policy.results.report.rollouts import SIZE, Acted, Clip
from immiscible_policy.results.report.words import (
    certainty,
    headline,
    measured,
    outcome,
    p_value,
    setting,
    share_span,
    signed,
    signed_span,
    subject,
    verdict,
    won,
)

KINDS = {
    "last10": f"mean of the last {LAST} checkpoints, or of all where there are fewer",
    "max": "the best checkpoint, chosen on these starts and so flattered",
    "max_fresh": "that checkpoint on starts that did not choose it",
}
FIRST = (("coverage", "last10"), ("coverage", "max_fresh"), ("reward", "last10"), ("success", "last10"))
"""Rows of the first table where two runs are compared."""
QUANTITIES = {
    "distance_percent": ("distance to the data, change in %", "0"),
    "squared_norm": ("mean squared norm", "numbers per chunk"),
    "variance": ("variance of all numbers", "1"),
    "ks": ("Kolmogorov-Smirnov distance to N(0, 1)", "0"),
    "correlation": ("correlation with the data", "0"),
    "prior_shift": ("mean noise that a condition meets", "0"),
    "selection_ms": ("time of one selection, ms", ""),
}
"""What the training records of its noise, in words, and what plain noise would give."""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        value: Text.
        span: Its interval, on a line of its own; may be empty.
        bar: An SVG below; may be empty.
    """

    value: str
    span: str = ""
    bar: str = ""


Row = list[Cell | str]


class Section(NamedTuple):
    """A tab.

    Attributes:
        id: Its name in links.
        title: Its name on the page.
        content: HTML.
    """

    id: str
    title: str
    content: str


def summary(evidence: Evidence) -> Section:
    """What was compared, which is better, by how much, how sure; then the main curve and all scores."""
    verdicts = f'<p class="verdict">{escape(headline(evidence))}</p>{_incomplete(evidence.arms)}'
    note = f'<p class="note">{escape(subject(evidence))}</p>'
    one = _facts(_certainty(evidence.pairings[0])) if len(evidence.pairings) == 1 else ""
    both = f'<div class="beside"><div>{note}{one}{_first_table(evidence)}</div>{_chart(evidence, "coverage")}</div>'
    each = _one_by_one(evidence) + "".join(map(_all_scores, evidence.pairings))
    return Section("summary", "Summary", verdicts + both + each)


def curves(evidence: Evidence) -> Section:
    """Every metric against training steps, as a chart and as a table."""
    metrics = metric_names(evidence.reference)
    parts = [f"<div>{_chart(evidence, metric)}{_curve_table(evidence, metric)}</div>" for metric in metrics]
    return Section("curves", "Curves", f'<div class="beside">{"".join(parts)}</div>')


def episodes(evidence: Evidence) -> Section:
    """Differences start by start."""
    parts = [_start_differences(pairing, index) for index, pairing in enumerate(evidence.pairings, start=1)]
    alone = "<p>One run: there is nothing to pair its starts with.</p>"
    return Section("episodes", "Episodes", "".join(parts) or alone)


def rollouts(evidence: Evidence, clips: Sequence[Clip], acted: Sequence[Acted]) -> Section:
    """The same starts, all runs side by side."""
    if not clips:
        return Section("rollouts", "Rollouts", "<p>No videos: none were asked for, or no run keeps a checkpoint.</p>")
    acting = [each.arm.name for each in acted]
    without = [arm.name for arm in evidence.arms if arm.name not in acting]
    missing = f"<p>No rollout of {escape(', '.join(without))}: no checkpoint is kept.</p>" if without else ""
    shown = ", ".join(f"{each.arm.name} (seed {each.seed}, step {each.checkpoint.step:,})" for each in acted)
    intro = (
        f"<p>Each run's best kept checkpoint, from the same starts and with the same sampling noise: {escape(shown)}. "
        "The starts were taken at even ranks, not picked by eye. The number over each scene is the largest coverage "
        "so far; a thick green frame is success. Played at twice the speed of the task, without sound. Nothing here "
        f"enters the statistics.</p>{missing}"
    )
    return Section(
        "rollouts", "Rollouts", f'{intro}<div class="beside">{"".join(_clip(clip, len(acted)) for clip in clips)}</div>'
    )


def modes(evidence: Evidence) -> list[Section]:
    """Which way round the runs turned the T from symmetric starts: a section, or none where nobody counted."""
    counted = [(arm.name, arm.modes) for arm in evidence.arms if arm.modes]
    if not counted:
        return []
    bars = {f"{name}, step {of.steps[-1]:,}": dict(zip(of.names, of.shares[-1], strict=True)) for name, of in counted}
    shown = {tuple(of.demonstrated): of for _, of in counted}
    for number, (counts, of) in enumerate(shown.items(), start=1):
        title = "demonstrations" + (f" {number}" if len(shown) > 1 else "")
        bars[title] = {mode: count / sum(counts) for mode, count in zip(of.names, counts, strict=True)}
    content = (
        "<p>From symmetric starts half a turn either way is equally good. Majority: share of the decided rollouts that "
        "took their start's more frequent direction (0.5 is balanced, 1 one way only). Total variation: distance to "
        "what the demonstrations show. Floor: what pure chance gives with as many rollouts.</p>"
        + figures.mode_bars(bars, "Which way round the T was turned")
        + _modes_table(counted)
        + "".join(_modes_over_training(name, of) for name, of in counted if len(of.steps) > 1)
    )
    return [Section("modes", "Modes", content)]


def noise(evidence: Evidence) -> Section:
    """What selection did to the noise during training."""
    intro = (
        "<p>What selection does to the training noise, at the last audited step. Sampling always starts from plain "
        "noise, so whatever differs from plain is a gap between training and sampling. Brackets: 95 % intervals for "
        "new training seeds, where there are several.</p>"
    )
    audited = [arm for arm in evidence.arms if arm.audits]
    without = [arm.name for arm in evidence.arms if not arm.audits]
    missing = f"<p>No audit was recorded for {escape(', '.join(without))}.</p>" if without else ""
    return Section("noise", "Noise audit", intro + missing + (_audit_table(audited) if audited else ""))


def reproduce(evidence: Evidence, origin: Mapping[str, Any]) -> Section:
    """Commands, commits, versions, hardware, data, settings."""
    parts = [_differing_settings(evidence.arms), *map(_origin, evidence.arms), _made_by(origin)]
    return Section("reproduce", "Reproduce", "".join(parts))


def table(caption: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A table whose first column names the rows; it scrolls by itself where a screen is narrow.

    Args:
        caption: What the table shows; text.
        columns: Heads; the first stands over the names.
        rows: A name and cells each.

    Returns:
        HTML.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    span = f' <span class="span">{escape(cell.span)}</span>' if cell.span else ""
    return f"{escape(cell.value)}{span}{cell.bar}"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _incomplete(arms: Sequence[Arm]) -> str:
    lacking = [f"{arm.name} lacks {' and '.join(arm.gaps)}" for arm in arms if arm.gaps]
    if not lacking:
        return ""
    return (
        f'<div class="warning" role="note"><p><strong>Incomplete:</strong> {escape("; ".join(lacking))}. Nothing was '
        "filled in: every mean is over what is there, and says nothing about the rest.</p></div>"
    )


def _one_by_one(evidence: Evidence) -> str:
    if len(evidence.pairings) < 2:
        return ""
    items = "".join(
        f"<h4>{escape(each.arm.name)}</h4><p>{escape(verdict(each))}</p>{_facts(_certainty(each))}"
        for each in evidence.pairings
    )
    return f"<h3>One by one</h3>{items}"


def _certainty(pairing: Pairing) -> dict[str, str]:
    rests = measured(pairing.comparison) if pairing.comparison else ""
    return {
        "how sure": certainty(pairing),
        "measured": rests,
        "they differ in": ", ".join(_differing(pairing)) or "nothing",
    }


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items() if value)
    return f"<dl>{rows}</dl>"


def _differing(pairing: Pairing) -> list[str]:
    return _differing_keys([pairing.arm, pairing.reference])


def _first_table(evidence: Evidence) -> str:
    if not evidence.pairings:
        return _alone_table(evidence.reference)
    compared = [(each, each.comparison) for each in evidence.pairings if each.comparison]
    if len(evidence.pairings) == 1:
        return "".join(_scores_of_two(pairing, found) for pairing, found in compared)
    reference, reach = evidence.reference.name, _reach([found.headline for _, found in compared])
    rows: list[Row] = [
        [_marked(pairing), *_result_cells(found.headline, reach), outcome(pairing)] for pairing, found in compared
    ]
    columns = ["run", "difference", "coverage", f"{reference}, same checkpoints", "so it is"]
    caption = f"Mean coverage, last {LAST} common checkpoints or all, against {reference}; 95 % intervals in brackets"
    return table(caption, columns, rows) if rows else ""


def _scores_of_two(pairing: Pairing, found: Comparison) -> str:
    a, b = pairing.arm.name, pairing.reference.name
    results = [result for result in found.results if (result.metric, result.kind) in FIRST]
    rows: list[Row] = [[_row_name(result), *_result_cells(result, _reach(results))] for result in results]
    caption = f"Scores of {a} and {b}, 95 % intervals in brackets"
    return table(caption, ["", f"{a} \N{MINUS SIGN} {b}", a, b], rows)


def _marked(pairing: Pairing) -> str:
    return f"{pairing.arm.name} (incomplete)" if pairing.arm.gaps else pairing.arm.name


def _alone_table(arm: Arm) -> str:
    rows: list[Row] = [
        [metric, _share(mean_interval(np.stack([found.last10(metric) for found in arm.scores.values()])))]
        for metric in metric_names(arm)
    ]
    return table(f"Scores of {arm.name}, {KINDS['last10']}; 95 % intervals in brackets", ["", arm.name], rows)


def _row_name(result: Result) -> str:
    return result.metric if result.kind == "last10" else "best checkpoint, fresh starts"


def _result_cells(result: Result, reach: float) -> list[Cell | str]:
    found = result.difference
    bar = figures.interval_bar(found, reach)
    return [Cell(signed(found.estimate), signed_span(found), bar), _share(result.a), _share(result.b)]


def _reach(results: Sequence[Result]) -> float:
    ends = [abs(end) for each in results for end in (each.difference.low, each.difference.high) if not math.isnan(end)]
    return 1.05 * max([1e-3, *ends])


def _share(found: Interval) -> Cell:
    return Cell(f"{found.estimate:.3f}", share_span(found))


def _all_scores(pairing: Pairing) -> str:
    found = pairing.comparison
    if found is None:
        return ""
    a, b = pairing.arm.name, pairing.reference.name
    rows: list[Row] = [
        [f"{each.metric}, {each.kind}", *_result_cells(each, _reach(found.results)), _by_seeds(each), _needed(each)]
        for each in found.results
    ]
    heads = ["", "difference", a, b, "seeds won", "to exclude 0: starts, or seeds"]
    kinds = "".join(f"<dt>{kind}</dt><dd>{meaning}</dd>" for kind, meaning in KINDS.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(found))
    content = table(f"All scores of {a} and {b}", heads, rows) + f"<dl>{kinds}</dl><ul>{notes}</ul>"
    return _details(f"All scores of {a} against {b}, and what to know when reading them", content)


def _notes(found: Comparison) -> list[str]:
    """The comparison's notes but for the settings, which have a table of their own."""
    return [note for note in found.notes if not note.startswith("Settings that differ")]


def _by_seeds(result: Result) -> str:
    test = result.over_seeds
    return "not paired" if test is None else f"{test.wins} : {test.losses}, {p_value(test.p)}"


def _needed(result: Result) -> str:
    if result.difference.excludes_zero:
        return "enough"
    return f"{_size(result.needed.starts)}, {_size(result.needed.seeds)}"


def _size(number: float) -> str:
    return "unknown" if math.isnan(number) else "never" if math.isinf(number) else f"{number:,.0f}"


def _curves(evidence: Evidence, metric: str) -> dict[str, Curve]:
    return {arm.name: curve(arm, metric) for arm in evidence.arms}


def _chart(evidence: Evidence, metric: str) -> str:
    return figures.curves(_curves(evidence, metric), LABELS[metric])


def _curve_table(evidence: Evidence, metric: str) -> str:
    by_arm = {name: dict(zip(of.steps, of.means, strict=True)) for name, of in _curves(evidence, metric).items()}
    steps = sorted(set().union(*by_arm.values()))
    rows: list[Row] = [
        [f"{step:,}", *(_share(of[step]) if step in of else "" for of in by_arm.values())] for step in steps
    ]
    caption = f"{LABELS[metric]}: mean at each checkpoint, 95 % intervals in brackets"
    return _details(f"The same as numbers: {metric}", table(caption, ["step", *by_arm], rows))


def _start_differences(pairing: Pairing, colour: int) -> str:
    found = by_start(pairing)
    if pairing.comparison is None or not found:
        return f"<p>{escape(verdict(pairing))}</p>"
    a, b = pairing.arm.name, pairing.reference.name
    what = "pairs of seed and start" if pairing.comparison.paired else "starts"
    count = won(pairing.comparison.headline.over_episodes, what)
    rows: list[Row] = [
        [str(each.start), f"{each.a:.3f}", f"{each.b:.3f}", Cell(signed(each.difference.estimate), span)]
        for each in sorted(found, key=lambda each: -each.difference.estimate)
        for span in [signed_span(each.difference)]
    ]
    caption = f"Coverage, last10, at each start; brackets: 95 % intervals {found[0].difference.meaning}"
    numbers = table(caption, ["start", a, b, "difference"], rows)
    return (
        f"<h3>{escape(a)} against {escape(b)}</h3><p>{escape(a)} is {escape(count)}; the test speaks of these runs "
        f"alone.</p>{figures.start_bars(found, a, b, colour)}{_details('The same as numbers, start by start', numbers)}"
    )


def _clip(clip: Clip, tiles: int) -> str:
    content = base64.b64encode(clip.mp4).decode()
    outcomes = "".join(f"<li>{escape(each)}</li>" for each in clip.outcomes)
    label = escape(f"Rollout from start {clip.start}; silent; what happens is listed below it")
    return (
        f"<figure><h3>Start {clip.start}</h3>"
        f'<video controls muted playsinline preload="metadata" width="{SIZE * min(2, tiles)}" aria-label="{label}" '
        f'aria-describedby="clip{clip.start}" src="data:video/mp4;base64,{content}"></video>'
        f'<figcaption id="clip{clip.start}"><p>{escape(clip.rank)}</p><ul>{outcomes}</ul></figcaption></figure>'
    )


def _modes_table(counted: Sequence[tuple[str, Modes]]) -> str:
    rows: list[Row] = []
    for measure in MEASURES:
        last = [of.measures[measure][-1] for _, of in counted]
        rows.append([measure.replace("_", " "), *map(_measured_share, last)])
        if any("floor" in each for each in last):
            floors = [each.get("floor") for each in last]
            rows.append([f"{measure.replace('_', ' ')}, floor", *("" if x is None else f"{x:.3f}" for x in floors)])
    heads = ["", *(f"{name}, step {of.steps[-1]:,}" for name, of in counted)]
    return table("Modes at the last checkpoint, 95 % intervals in brackets", heads, rows)


def _measured_share(entry: Mapping[str, Any]) -> Cell | str:
    if entry["mean"] is None:
        return "nothing decided"
    low, high = (math.nan if entry[end] is None else entry[end] for end in ("low", "high"))
    return _share(Interval(entry["mean"], low, high, entry["over"]))


def _modes_over_training(name: str, of: Modes) -> str:
    rows = {
        f"step {step:,}": dict(zip(of.names, row, strict=True)) for step, row in zip(of.steps, of.shares, strict=True)
    }
    return _details(f"{name} over training", figures.mode_bars(rows, f"{name}: modes at each checkpoint"))


def _audit_table(arms: Sequence[Arm]) -> str:
    keys = list(dict.fromkeys(key for arm in arms for audit in arm.audits.values() for key in audit if key != "step"))
    rows: list[Row] = [[*_quantity(key), *(_audited(arm, key) for arm in arms)] for key in keys]
    heads = ["", "plain noise", *(f"{arm.name}, step {_audited_steps(arm)}" for arm in arms)]
    return table("Noise audit, mean over training seeds", heads, rows)


def _quantity(key: str) -> tuple[str, str]:
    if key in QUANTITIES:
        return QUANTITIES[key]
    return key.replace("_", " ").replace("target variance", "variance left in the target, alpha-bar"), ""


def _audited(arm: Arm, key: str) -> Cell | str:
    values = [audit[key] for audit in arm.audits.values() if key in audit]
    if not values:
        return ""
    found = mean_interval(np.array(values)[:, None])
    span = "" if math.isnan(found.low) else f"[{found.low:.4g}, {found.high:.4g}]"
    return Cell(*(text.replace("-", "\N{MINUS SIGN}") for text in (f"{found.estimate:.4g}", span)))


def _audited_steps(arm: Arm) -> str:
    return " and ".join(sorted({f"{audit['step']:,}" for audit in arm.audits.values()}))


def _differing_keys(arms: Sequence[Arm]) -> list[str]:
    found = [arm.run.settings for arm in arms]
    return [key for key in sorted(set().union(*found)) if any(each.get(key) != found[0].get(key) for each in found[1:])]


def _differing_settings(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return ""
    keys = _differing_keys(arms)
    rows: list[Row] = [[key, *(setting(arm.run.settings.get(key)) for arm in arms)] for key in keys]
    caption = "Settings that differ between the runs"
    return table(caption, ["", *(arm.name for arm in arms)], rows) if rows else "<p>No setting differs.</p>"


def _origin(arm: Arm) -> str:
    origin = arm.origin
    known = {
        "commit": origin.get("commit"),
        "data, content hash": origin.get("data", {}).get("content_hash"),
        "data, episodes": origin.get("data", {}).get("episodes"),
        "hardware": _listed(origin.get("hardware", {})),
        "versions": _listed(origin.get("versions", {})),
        "training seeds": ", ".join(map(str, arm.scores)),
    }
    command = f"<pre><code>{escape(without_places(origin['command']))}</code></pre>" if "command" in origin else ""
    unknown = "" if origin else "<p>The run has no provenance.json: its command and data are not known.</p>"
    resolved = yaml.safe_dump(arm.run.settings, sort_keys=False)
    config = _details(f"All settings of {arm.name}", f"<pre><code>{escape(resolved)}</code></pre>")
    return f"<h3>{escape(arm.name)}</h3>{unknown}{command}{_facts(known)}{config}"


def _made_by(origin: Mapping[str, Any]) -> str:
    facts = {"commit": origin["commit"], "versions": _listed(origin["versions"])}
    return (
        f"<h3>This report</h3><pre><code>{escape(without_places(origin['command']))}</code></pre>{_facts(facts)}"
        "<p>Commands are shown without the directories that files lay in.</p>"
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {setting(value)}" for key, value in values.items())
