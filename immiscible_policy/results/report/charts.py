"""The charts of a page, drawn by matplotlib as SVG that takes the colours of the page and of the reader's light.

A chart is drawn 420 units wide with text of 12, so that it can be read on a phone. What an artist's `gid` says after
`tip ` becomes a tooltip.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text as Label
from matplotlib.ticker import FuncFormatter, MaxNLocator

from immiscible_policy.palette import DASHES, GREY, GRID, INK, mode_colour, panels
from immiscible_policy.results.plots import draw_curves, title_of
from immiscible_policy.results.report.evidence import Evidence, RunContrast, by_start
from immiscible_policy.results.report.words import signed
from immiscible_policy.tasks import Metric

WIDTH, HEIGHT, FONT = 420, 260, 12
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {INK: "var(--text)", GREY: "var(--quiet)", GRID: "var(--line)", "#000000": "var(--text)"}
"""Colours that a dark page exchanges."""


@dataclass(frozen=True)
class Chart:
    """A chart; the description is for readers who cannot see it.

    The legend holds colour and line style (a `stroke-dasharray`) by label, the note says how to read it.
    """

    title: str
    figure: Figure
    description: str
    legend: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    note: str = ""


def curve_chart(evidence: Evidence, metric: Metric) -> Chart:
    """Scores of all runs against training steps: mean, 95% interval and every seed."""
    curves, colour = evidence.curves(metric), evidence.colours
    figure, (axes,) = panels(1, width=WIDTH / 72, height=HEIGHT / 72)
    dashes = dict(zip(curves, DASHES, strict=False))
    draw_curves(axes, curves, colour, low=metric.low, high=metric.high, dashes=dashes)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    points = {
        name: [f"{curve.means[i].estimate:.2f} at step {curve.steps[i]:,}" for i in (0, -1)]
        for name, curve in curves.items()
    }
    ends = "; ".join(f"{name} from {first} to {last}" for name, (first, last) in points.items())
    title = title_of(metric)
    lengths = {name: dash[1] if isinstance(dash, tuple) else () for name, dash in dashes.items()}
    legend = {name: (colour[name], " ".join(f"{2 * length:g}" for length in lengths[name])) for name in curves}
    note = "Thick: mean over seeds and starts. Band: its 95% interval. Thin: each training seed."
    return Chart(title, figure, f"{title}. Against training steps: {ends}.", legend, note)


def start_chart(evidence: Evidence, contrast: RunContrast) -> Chart:
    """A - B in the primary metric at every start, from the greatest to the smallest; coloured as the higher run."""
    metric, a, b = evidence.metrics[0].name, contrast.run.name, contrast.reference.name
    ordered = sorted(by_start(contrast, metric), key=lambda item: -item.difference.estimate)
    values = [item.difference.estimate for item in ordered]
    figure, (axes,) = panels(1, width=WIDTH / 72, height=HEIGHT / 72)
    for place, (item, value) in enumerate(zip(ordered, values, strict=True)):
        tip = f"tip start {item.start}: {signed(value)} ({item.a:.3f} against {item.b:.3f})"
        axes.bar(place, value, 0.8, color=evidence.colours[a if value > 0 else b]).patches[0].set_gid(tip)
    reach = max(1, math.ceil(20 * max(map(abs, values)))) / 20
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)[:-1] if abs(value) > 1e-9 else "0"))
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(ordered)} starts, sorted")
    title = f"{metric.replace('_', ' ')}, {a} \N{MINUS SIGN} {b}, at each start"
    higher = sum(value > 0 for value in values)
    description = f"{title}. {a} is higher at {higher} of {len(ordered)} starts; differences run from "
    description += f"{signed(values[0])} to {signed(values[-1])}."
    return Chart(title, figure, description, {f"{name} is higher": (evidence.colours[name], "") for name in (a, b)})


def share_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each behaviour; the last one stands for undecided rollouts and is grey."""
    return {name: mode_colour(mode, len(names)) for mode, name in enumerate(names)}


def svg(chart: Chart, prefix: str) -> Markup:
    """A chart as an SVG element of a page; the same figure gives the same text.

    The prefix begins every id, and tells the page's charts apart.
    """
    for label in chart.figure.findobj(Label):
        assert isinstance(label, Label)
        label.set(fontsize=FONT, color=INK)
    for background in (chart.figure.patch, *(axes.patch for axes in chart.figure.axes)):
        background.set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        FigureCanvasSVG(chart.figure).print_svg(buffer, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = {element.get(f"{{{XLINK}}}href", "")[1:] for element in root.iter()}
    used |= {element.get("clip-path", "")[5:-1] for element in root.iter()}
    for element in root.iter():
        _localise(element, used, prefix)
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": chart.description}
    ElementTree.register_namespace("", SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(text.replace(f' xmlns="{SVG}"', ""))


def _localise(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Make ids the page's own, tooltips of what asks for one, and colours those of the page."""
    name = element.attrib.pop("id", "")
    if name.startswith("tip "):
        tip = ElementTree.Element(f"{{{SVG}}}title")
        tip.text = name.removeprefix("tip ")
        element.insert(0, tip)
    elif name and name in used:
        element.set("id", prefix + name)
    if link := element.attrib.pop(f"{{{XLINK}}}href", ""):
        element.set("href", f"#{prefix}{link[1:]}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("#", f"#{prefix}"))
    if style := element.get("style"):
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, variable)
        element.set("style", style)
