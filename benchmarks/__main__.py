"""`python -m benchmarks NAME [KEY=VALUE ...]`: measure side by side, print, and write JSON with its origin."""

from __future__ import annotations

from pathlib import Path

from benchmarks import study
from immiscible_policy.cli import run
from immiscible_policy.results.experiment import Experiments

NAMES = ("step", "sampling", "env", "selection", "time_to_policy")
EXPERIMENTS = Experiments("benchmarks", NAMES, Path("runs/benchmarks"))


def main(words: list[str]) -> None:
    """Run one benchmark, or turn finished runs into a result."""
    if words[:1] == ["study"]:
        return study.run(words[1:])
    EXPERIMENTS.run(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print("  study        Turn finished runs into a committed result.")


if __name__ == "__main__":
    run(main)
