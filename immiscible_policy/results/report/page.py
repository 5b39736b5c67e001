"""The page: sections put into page.html with its style and its script, all in one file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from immiscible_policy.palette import COLOURS
from immiscible_policy.provenance import provenance
from immiscible_policy.results.report import sections
from immiscible_policy.results.report.gather import Evidence, gather
from immiscible_policy.results.report.rollouts import roll_out
from immiscible_policy.results.report.words import headline, title
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.run import RunDirectory

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "1 3", "12 4", "5 5")


def write_report(runs: Sequence[RunDirectory], out: Path, *, reference: int, videos: int) -> int:
    """Write a report of runs: one HTML file that needs nothing else.

    Args:
        runs: The runs.
        out: The file.
        reference: Index of the run that the others are compared with.
        videos: Number of starts to roll out; 0 for none.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: If the runs cannot be reported, or a checkpoint that is to be rolled out is damaged.
    """
    origin = provenance()
    evidence = gather(runs, reference)
    content = render(evidence, origin, videos).encode()
    write_atomically(out, content)
    return len(content)


def render(evidence: Evidence, origin: dict[str, Any], videos: int) -> str:
    """The page's HTML.

    Args:
        evidence: What it reports.
        origin: Provenance of the report itself.
        videos: Number of starts to roll out.

    Returns:
        HTML.
    """
    clips, acted = roll_out(evidence, videos) if videos else ([], [])
    shown = [
        sections.summary(evidence),
        sections.curves(evidence),
        sections.episodes(evidence),
        sections.rollouts(evidence, clips, acted),
        *sections.modes(evidence),
        sections.noise(evidence),
        sections.reproduce(evidence, origin),
    ]
    return Template(_part("page.html")).substitute(
        title=escape(title(evidence)),
        description=escape(headline(evidence)),
        style=_part("page.css") + _colours(),
        script=_part("page.js"),
        tabs="".join(_tab(section) for section in shown),
        panels="".join(_panel(section) for section in shown),
    )


def _part(name: str) -> str:
    return (files("immiscible_policy.results.report") / name).read_text()


def _colours() -> str:
    """One class per run: its colour, black being what text is on a dark page, and its line style."""
    return "".join(
        f".c{index} {{ --colour: {'var(--text)' if colour == '#000000' else colour}; --dash: {dash}; }}\n"
        for index, (colour, dash) in enumerate(zip(COLOURS, DASHES, strict=True))
    )


def _tab(section: sections.Section) -> str:
    return (
        f'<button type="button" role="tab" id="tab-{section.id}" aria-controls="{section.id}">'
        f"{escape(section.title)}</button>"
    )


def _panel(section: sections.Section) -> str:
    return (
        f'<section id="{section.id}" aria-labelledby="heading-{section.id}">'
        f'<h2 id="heading-{section.id}">{escape(section.title)}</h2>{section.content}</section>'
    )
