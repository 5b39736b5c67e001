"""Tasks: what a policy is scored on. One file per task; `pusht.py` is the only file that knows PushT."""

from immiscible_policy.tasks.task import (
    DEFAULT,
    Metric,
    Modes,
    ObservationLayout,
    Observed,
    SetMetric,
    Task,
    find_task,
    first_observation,
    open_demonstrations,
    primary,
    recorded_task,
    success,
    summarised,
    task_of_store,
    task_windows,
)
