"""`python -m benchmarks NAME [KEY=VALUE ...]`: measure side by side, print, and write JSON with its origin."""

from __future__ import annotations

from pathlib import Path

from benchmarks import study
from immiscible_policy.cli import parse, run
from immiscible_policy.results.experiment import Experiments

SPEED = ("step", "sampling", "env", "selection")
EXPERIMENTS = Experiments("benchmarks", (*SPEED, "time_to_policy", "selftest"), Path("runs/benchmarks"))


def main(words: list[str]) -> None:
    """Run one benchmark, all of them, or turn finished runs into a result."""
    if words[:1] == ["study"]:
        study.run(words[1:])
    elif words[:1] == ["all"]:
        run_all(words[1:])
    else:
        EXPERIMENTS.run(words)
        if not words or words[0] in ("-h", "--help", "help"):
            print("  all          The first four, one after another, with the options that they share.")
            print("  study        Turn finished runs into a committed result.")


def run_all(words: list[str]) -> None:
    """Run every benchmark of speed with the same words.

    Raises:
        CommandError: Before any of them runs, if one of them does not know a word.
    """
    own = [word for word in words if not word.startswith("out=")]
    for experiment in map(EXPERIMENTS.load, SPEED):
        parse(own, experiment.options, experiment.usage)
    for name in SPEED:
        EXPERIMENTS.run([name, *words])


if __name__ == "__main__":
    run(main)
