"""The commands of `python -m immiscible_policy.demos`."""

from pathlib import Path

from immiscible_policy.cli import REQUIRED, Option
from immiscible_policy.tasks import DEFAULT

PATH = Option(Path, REQUIRED, "demonstrations: a zarr directory, a zip archive of one, or a data set of LeRobot")
SHOWN = Option(str, None, "task of the demonstrations; by default what the store says or looks like")
TASK = Option(str, DEFAULT, "task of the demonstrations")
