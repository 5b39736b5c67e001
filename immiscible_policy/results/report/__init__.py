"""A report of any set of runs: one HTML file that needs nothing else.

    evidence  what the run directories say, what is missing in them, and the comparisons
    words     the verdict in plain sentences
    charts    learning curves and differences by start, as SVG of matplotlib
    rollouts  the same starts, all runs side by side, as small videos
    page      all of it in `templates/report.html`, which holds the tables too and extends `base.html`

Every statistic comes from `evaluation` and `results.compare`; nothing is computed here a second time.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import CommandError, Option, expanded, require_writable


def page_file(text: str) -> Path:
    """Read the name of a report, which must end in .html."""
    path = expanded(text)
    if path.suffix != ".html":
        raise ValueError("a report's name must end in .html")
    return path


def video_count(text: str) -> int:
    """Read a number of videos, 0 to 20 or `none`."""
    if text == "none":
        return 0
    if not text.isdecimal() or int(text) > 20:
        raise ValueError("use none or 0 to 20")
    return int(text)


def require_page(key: str, path: Path) -> None:
    """Refuse a directory, or a file that cannot be created."""
    if path.is_dir():
        raise CommandError(f"{key}={path} is a directory; give a file")
    require_writable(key, path)


VIDEOS = Option(video_count, 3, "starts to roll out in the report, all runs side by side, or none")
