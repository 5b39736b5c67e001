"""Demonstrations: replay stores on disk, windows for training, and the commands that fetch and check them.

Example::

    from immiscible_policy.demos import Layout, make_windows, open_store, split_episodes

    demos = open_store("my_robot.zarr")
    train, validation = split_episodes(demos.n_episodes, validation=0.02, limit=90)
    chosen = demos.select(train)
    layout = Layout(horizon=16, obs_steps=2, action_steps=8)
    windows = make_windows(chosen["position"], chosen["action"], chosen.episode_ends, layout)
"""

from immiscible_policy.cli import require_extra

require_extra("train")

from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.demonstrations import Demonstrations, join
from immiscible_policy.demos.frames import Frames
from immiscible_policy.demos.split import split_episodes
from immiscible_policy.demos.store import content_hash, open_store, write_store
from immiscible_policy.demos.windows import Layout, Windows, make_windows
