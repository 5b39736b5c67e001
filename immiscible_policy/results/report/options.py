"""The options of a report, which `compare_policies.py` takes as well."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import CommandError, Option, require_writable


def page_file(text: str) -> Path:
    """Read the name of a report, which must end in .html."""
    path = Path(text).expanduser()
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
