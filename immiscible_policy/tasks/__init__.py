"""Tasks: what a policy is scored on. One file per task; `pusht.py` is the only file that knows PushT."""

from immiscible_policy.tasks.task import (
    Metric,
    Observed,
    Task,
    Ways,
    find_task,
    open_demonstrations,
    primary,
    summarised,
    task_windows,
)

__all__ = ["Metric", "Observed", "Task", "Ways", "find_task", "open_demonstrations", "primary", "summarised",
           "task_windows"]  # fmt: skip
