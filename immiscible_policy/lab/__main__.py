"""`python -m immiscible_policy.lab NAME [KEY=VALUE ...]`: run an experiment, write JSON, PNG and Markdown."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import program
from immiscible_policy.results.experiment import Experiments

NAMES = (
    "selectors", "distances", "clusters", "gaussianity", "tsne", "bijection", "steps", "scaling", "toy", "solvers",
    "dial",
)  # fmt: skip
EXPERIMENTS = Experiments("immiscible_policy.lab", NAMES, Path("runs/analysis"))
main = program(EXPERIMENTS.run)

if __name__ == "__main__":
    main()
