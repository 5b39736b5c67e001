"""The commands of `python -m immiscible_policy.demos`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from immiscible_policy.cli import REQUIRED, Option
from immiscible_policy.tasks import DEFAULT, Task, find_task, task_of_store

PATH = Option(Path, REQUIRED, "demonstrations: a zarr directory, a zip archive of one, or a data set of LeRobot")
SHOWN = Option(str, None, "task of the demonstrations; by default what the store says or looks like")
TASK = Option(str, DEFAULT, "task of the demonstrations")


def shown_task(options: Mapping[str, Any]) -> Task:
    """The task that `SHOWN` names, or that the store of `PATH` says it shows."""
    return find_task(options["task"]) if options["task"] else task_of_store(options["path"])
