"""`python -m immiscible_policy.demos validate`."""

from __future__ import annotations

from immiscible_policy.cli import CommandError, parse
from immiscible_policy.commands.demos import PATH, SHOWN, shown_task
from immiscible_policy.demos.store import open_store
from immiscible_policy.demos.validate import problems

USAGE = """usage: python -m immiscible_policy.demos validate path=STORE [task=TASK]

Reads a whole store, images included, prints each thing that is wrong with it and where (array, episode, step,
chunk file), and exits with code 2 if there is any."""
OPTIONS = {
    "path": PATH,
    "task": SHOWN,
}


def main(words: list[str]) -> None:
    """Run the command; a CommandError if anything is wrong with the store, after each thing was printed."""
    options = parse(words, OPTIONS, USAGE)
    path = options["path"]
    task = shown_task(options)
    count = 0
    for problem in problems(path, task.columns, task.problems):
        print(problem, flush=True)
        count += 1
    if count:
        raise CommandError(f"{path}: {count} {'problem' if count == 1 else 'problems'} found")
    demos = open_store(path, task.columns)
    print(f"{path}: {demos.n_episodes} episodes, {len(demos):,} steps, nothing wrong")
