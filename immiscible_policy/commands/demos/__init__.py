"""The commands of `python -m immiscible_policy.demos`."""

from pathlib import Path

from immiscible_policy.cli import REQUIRED, Option
from immiscible_policy.tasks import DEFAULT

PATH = Option(Path, REQUIRED, "store of demonstrations (a .zarr directory)")
TASK = Option(str, DEFAULT, "the task that is demonstrated")
