"""Demonstrations: replay stores on disk, windows for training, and the commands that fetch and check them.

Example::

    from immiscible_policy.demos import embedded_store, make_windows, open_store, split_episodes

    demos = open_store(embedded_store())
    train, validation = split_episodes(demos.n_episodes, limit=90)
    windows = make_windows(demos.select(train), obs="keypoints")
"""

from immiscible_policy.demos.split import split_episodes
from immiscible_policy.demos.store import (
    Demonstrations,
    StoreError,
    content_hash,
    embedded_store,
    open_store,
    write_store,
)
from immiscible_policy.demos.windows import Layout, Windows, make_windows

__all__ = [
    "Demonstrations",
    "Layout",
    "StoreError",
    "Windows",
    "content_hash",
    "embedded_store",
    "make_windows",
    "open_store",
    "split_episodes",
    "write_store",
]
