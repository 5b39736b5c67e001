"""Tasks: what a policy is scored on. One file per task; `pusht.py` is the only file that knows PushT."""

from immiscible_policy.tasks.task import Metric, Task, find_task, primary

__all__ = ["Metric", "Task", "find_task", "primary"]
