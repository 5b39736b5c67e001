"""The page: `templates/report.html` filled in, with its style and its script in the same file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from immiscible_policy.evaluation.scores import LAST
from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.results.formatting import brackets
from immiscible_policy.results.plots import title_of
from immiscible_policy.results.report import charts, words
from immiscible_policy.results.report.evidence import Evidence, by_start, differing_settings, gather
from immiscible_policy.results.report.rollouts import roll_out
from immiscible_policy.results.writer import origin_here
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import Metric, SetMetric

PACKAGE = "immiscible_policy.results.report"


def write_report(runs: Mapping[str, RunDirectory], out: Path, *, reference: str, videos: int) -> int:
    """Write a report of runs, one HTML file that needs nothing else, and return its size in bytes.

    The others are compared with the run called `reference`; `videos` starts are rolled out.

    Raises:
        ValueError: If the runs cannot be reported, or a checkpoint to roll out is damaged.
    """
    origin = origin_here()
    content = render(gather(runs, reference), origin, videos).encode()
    write_atomically(out, content)
    return len(content)


def render(evidence: Evidence, origin: Mapping[str, Any], videos: int) -> str:
    """The report's HTML; `origin` is that of the report itself, `videos` the number of starts to roll out."""
    clips, acted = roll_out(evidence, videos) if videos else ([], [])
    observations = sorted({str(run.run.config["obs"]) for run in evidence.runs if "obs" in run.run.config})
    return fill(
        "report.html",
        charts=charts,
        by_start=by_start,
        last=min(LAST, *(len(scored.steps) for run in evidence.runs for scored in run.scores.values())),
        words=words,
        title=words.title(evidence),
        description=words.headline(evidence),
        observations=" and ".join(observations),
        differing_settings=differing_settings,
        evidence=evidence,
        origin=origin,
        clips=clips,
        acted=acted,
    )


def fill(template: str, *, package: str = PACKAGE, **content: object) -> str:
    """A page from a file in the folder `templates` of a package that extends `base.html`; all text is escaped.

    The template must be given all that it asks for.
    """
    numbers = count()
    loader = ChoiceLoader([PackageLoader(package), PackageLoader(PACKAGE)])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "spoken": lambda name: name.replace("_", " "),
        "title_of": title_of,
        "number": _number,
        "brackets": _brackets,
        "reach": words.reach,
        "svg": lambda chart: charts.svg(chart, f"chart{next(numbers)}-"),
        "base64": lambda content: base64.b64encode(content).decode(),
        "yaml": lambda values: yaml.safe_dump(values, sort_keys=False),
        "listed": lambda values: ", ".join(f"{key} {words.setting(value)}" for key, value in values.items()),
    }
    return environment.get_template(template).render(content)


def _number(value: float, form: str = ".3f") -> str:
    return words.minus(f"{value:{form}}")


def _brackets(interval: Interval, form: str = ".3f", metric: Metric | SetMetric | None = None) -> str:
    """An interval alone, cut to the metric's range."""
    return words.minus(brackets(interval, form, None if metric is None else (metric.low, metric.high)))
