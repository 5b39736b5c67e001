"""`python -m benchmarks NAME [KEY=VALUE ...]`: measure side by side, print, and write JSON with its origin."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import program
from immiscible_policy.results.experiment import Experiments

NAMES = ("step", "sampling", "env", "selection", "time_to_policy")
EXPERIMENTS = Experiments("benchmarks", NAMES, Path("runs/benchmarks"))
main = program(EXPERIMENTS.run)

if __name__ == "__main__":
    main()
