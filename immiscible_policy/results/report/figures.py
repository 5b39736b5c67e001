"""Figures as inline SVG that stretches with the page: lines are scaled, text and dots are not.

Positions are percentages of the plot (x from the left, y from the top); what must stretch lies in a nested `<svg>` of
100 x 100 units. Colours and line styles are the classes c0..c6 of the page's style sheet, so that a dark page recolours
them. Every figure says in words what it shows; the page has its numbers as a table as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.results.report.gather import Curve, StartDifference
from immiscible_policy.results.report.words import share_span, signed


def curves(runs: Mapping[str, Curve], title: str) -> str:
    """Scores in [0, 1] against training steps: mean (thick, dots), 95 % interval (band), each seed (thin).

    Args:
        runs: Curves by the run's name, in the order of the colours.
        title: What is drawn.

    Returns:
        A figure with its legend.
    """
    longest = max(curve.steps[-1] for curve in runs.values())
    marks = [(100 * step / longest, f"{step:,}") for step in ticks(longest)]
    levels = [(100 * (1 - level), f"{level:g}") for level in (0, 0.25, 0.5, 0.75, 1)]
    ends = "; ".join(
        f"{name} from {curve.means[0].estimate:.2f} at step {curve.steps[0]:,} to {curve.means[-1].estimate:.2f} at "
        f"step {curve.steps[-1]:,}"
        for name, curve in runs.items()
    )
    lines = _bands(runs, longest)
    lines += "".join(_lines(index, curve, longest) for index, curve in enumerate(runs.values()))
    dots = "".join(_dots(index, name, curve, longest) for index, (name, curve) in enumerate(runs.items()))
    plot = _plot(title, f"Against training steps: {ends}.", marks, levels, f"{_stretched(lines)}{dots}")
    note = "Thick: mean over seeds and starts. Band: its 95 % interval. Thin: each training seed."
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend(list(runs))}{plot}'
        f'<p class="axis">training steps</p><p class="note">{note}</p></figure>'
    )


def start_bars(found: Sequence[StartDifference], a: str, b: str, colour: int) -> str:
    """A - B at every start, from the greatest to the smallest, one bar each.

    Args:
        found: The differences.
        a: Name of A.
        b: Name of B, which has the colour 0.
        colour: Index of A's colour.

    Returns:
        A figure.
    """
    ordered = sorted(found, key=lambda each: -each.difference.estimate)
    reach = max(1, math.ceil(20 * max(abs(each.difference.estimate) for each in ordered))) / 20
    width = 100 / len(ordered)
    bars = "".join(
        f'<rect class="c{colour if value > 0 else 0}" x="{index * width + 0.1 * width:.3f}" '
        f'y="{min(50, 50 - 50 * value / reach):.3f}" width="{0.8 * width:.3f}" height="{50 * abs(value) / reach:.3f}">'
        f"<title>start {each.start}: {signed(value)} ({each.a:.3f} against {each.b:.3f})</title></rect>"
        for index, each in enumerate(ordered)
        for value in [each.difference.estimate]
    )
    levels = [(0.0, signed(reach)[:-1]), (50.0, "0"), (100.0, signed(-reach)[:-1])]
    higher = sum(each.difference.estimate > 0 for each in ordered)
    title = f"Coverage, {a} minus {b}, at each start"
    description = f"{a} is higher at {higher} of {len(ordered)} starts; differences run from "
    description += f"{signed(ordered[0].difference.estimate)} to {signed(ordered[-1].difference.estimate)}."
    plot = _plot(title, description, [], levels, _stretched(bars))
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{plot}<p class="axis">{len(ordered)} starts, '
        f"sorted: {escape(a)} higher on the left, {escape(b)} higher on the right</p></figure>"
    )


def interval_bar(found: Interval, reach: float) -> str:
    """An interval about 0 as a small bar, to stand beside its numbers; hidden from screen readers.

    Args:
        found: The interval of a difference.
        reach: Value at the right end.

    Returns:
        An SVG; empty where there is no interval.
    """
    if math.isnan(found.low):
        return ""
    low, at, high = (50 + 50 * value / reach for value in (found.low, found.estimate, found.high))
    kind = "sure" if found.excludes_zero else "unsure"
    return (
        f'<svg class="interval {kind}" aria-hidden="true"><line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>'
        f'<line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
        f'<circle cx="{at:.2f}%" cy="50%" r="4"/></svg>'
    )


def mode_bars(shares: Mapping[str, Mapping[str, float]], title: str) -> str:
    """How often each behaviour was chosen: one stacked bar per row.

    Args:
        shares: By row, the share in [0, 1] of each behaviour; all rows name the same behaviours, the last of which
            is what is left over, and grey.
        title: What is drawn.

    Returns:
        A figure with its legend.
    """
    rows = "".join(
        f'<li><span class="row">{escape(name)}</span><svg class="stack" role="img" aria-label="'
        f'{escape(_shares(of_row))}">{_stack(of_row)}</svg><span class="numbers">{escape(_shares(of_row))}</span></li>'
        for name, of_row in shares.items()
    )
    *kinds, left_over = next(iter(shares.values()))
    keys = "".join(_key(f"c{index}", name) for index, name in enumerate(kinds)) + _key("rest", left_over)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><ul class="legend">{keys}</ul>'
        f'<ul class="bars">{rows}</ul></figure>'
    )


def legend(names: Sequence[str]) -> str:
    """Names with the line of their colour."""
    return f'<ul class="legend">{"".join(_key(f"c{index}", name) for index, name in enumerate(names))}</ul>'


def ticks(longest: int, most: int = 5) -> list[int]:
    """Round numbers from 0 to at most `longest`: multiples of 1, 2 or 5 times a power of ten."""
    rough = max(1.0, longest / most)
    power = 10 ** math.floor(math.log10(rough))
    step = next(round(factor * power) for factor in (1, 2, 5, 10) if factor * power >= rough)
    return list(range(0, longest + 1, step))


def _bands(runs: Mapping[str, Curve], longest: int) -> str:
    return "".join(
        f'<path class="band c{index}" d="{_path(across, high)}L{_path(across[::-1], low[::-1])[1:]}Z"/>'
        for index, curve in enumerate(runs.values())
        if not any(math.isnan(each.low) for each in curve.means)
        for across in [_across(curve, longest)]
        for high in [[min(1.0, each.high) for each in curve.means]]
        for low in [[max(0.0, each.low) for each in curve.means]]
    )


def _lines(index: int, curve: Curve, longest: int) -> str:
    across = _across(curve, longest)
    seeds = "".join(f'<path class="seed" d="{_path(across, list(row))}"/>' for row in curve.seeds)
    mean = f'<path class="mean" d="{_path(across, [each.estimate for each in curve.means])}"/>'
    return f'<g class="c{index}">{seeds}{mean}</g>'


def _across(curve: Curve, longest: int) -> list[float]:
    return [100 * step / longest for step in curve.steps]


def _dots(index: int, name: str, curve: Curve, longest: int) -> str:
    return "".join(
        f'<circle class="c{index}" cx="{100 * step / longest:.2f}%" cy="{100 * (1 - each.estimate):.2f}%" r="4">'
        f"<title>{escape(name)}, step {step:,}: {each.estimate:.3f} {share_span(each)}</title></circle>"
        for step, each in zip(curve.steps, curve.means, strict=True)
    )


def _path(across: Sequence[float], values: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.2f} {100 * (1 - value):.2f}" for x, value in zip(across, values, strict=True))


def _stretched(shapes: str) -> str:
    return f'<svg class="lines" aria-hidden="true" viewBox="0 0 100 100" preserveAspectRatio="none">{shapes}</svg>'


def _plot(
    title: str,
    description: str,
    marks: Sequence[tuple[float, str]],
    levels: Sequence[tuple[float, str]],
    content: str,
) -> str:
    """A plot with its grid; marks along x and levels along y are (percent, text)."""
    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        f'<text x="0" y="{y:.2f}%" dx="-8" dy="4" text-anchor="end">{text}</text>'
        for y, text in levels
    )
    below = "".join(f'<text x="{x:.2f}%" y="100%" dy="18" text-anchor="middle">{text}</text>' for x, text in marks)
    label = escape(f"{title}. {description}")
    return f'<svg class="plot" role="img" aria-label="{label}">{grid}{below}{content}</svg>'


def _key(kind: str, name: str) -> str:
    line = '<line x1="0" x2="100%" y1="50%" y2="50%"/>'
    return f'<li><svg class="key {kind}" aria-hidden="true">{line}</svg>{escape(name)}</li>'


def _stack(shares: Mapping[str, float]) -> str:
    left, parts = 0.0, []
    kinds = [f"c{index}" for index in range(len(shares) - 1)] + ["rest"]
    for kind, share in zip(kinds, shares.values(), strict=True):
        parts.append(f'<rect class="{kind}" x="{100 * left:.2f}%" y="0" width="{100 * share:.2f}%" height="100%"/>')
        left += share
    return "".join(parts)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
