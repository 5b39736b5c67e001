"""`python -m immiscible_policy.demos download`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from immiscible_policy.cli import REQUIRED, Option, parse
from immiscible_policy.demos.download import download
from immiscible_policy.tasks.pusht import PushT

ARCHIVE = PushT.archive
USAGE = f"""usage: python -m immiscible_policy.demos download out=DIR [url=URL]

Fetches {ARCHIVE.about} to
DIR/{ARCHIVE.name}. Run it again after an interruption: it continues where it stopped.

example: python -m immiscible_policy.demos download out=data"""
OPTIONS = {
    "out": Option(Path, REQUIRED, "directory that receives the store"),
    "url": Option(str, ARCHIVE.url, "another place that offers the same archive"),
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    print(f"{download(replace(ARCHIVE, url=options['url']), options['out'])}: verified")
