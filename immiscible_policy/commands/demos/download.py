"""`python -m immiscible_policy.demos download`: a task's published demonstrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse
from immiscible_policy.commands.demos import TASK
from immiscible_policy.demos.download import download
from immiscible_policy.tasks import find_task

USAGE = """usage: python -m immiscible_policy.demos download out=DIR [url=URL task=TASK]

Fetches and verifies a task's published demonstrations. Run it again after an interruption: it continues where it
stopped."""
OPTIONS = {
    "out": Option(Path, REQUIRED, "directory for the store"),
    "url": Option(str, None, "another address of the same archive"),
    "task": TASK,
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    archive = find_task(options["task"]).archive
    if archive is None:
        raise CommandError(f"task={options['task']} has no demonstrations to download")
    if options["url"] is not None:
        archive = replace(archive, url=options["url"])
    print(archive.about, flush=True)
    print(f"{download(archive, options['out'])}: verified")
