"""What LeRobot asks of an environment beyond gymnasium's interface."""

import gymnasium
import numpy as np

import immiscible_envs.lerobot  # noqa: F401


def test_options_of_lerobots_own_leave_the_published_start():
    ours = gymnasium.make("immiscible/PushT-LeRobot-v0")
    expected, _ = ours.reset(seed=100003)
    seen, _ = ours.reset(seed=100003, options={"lerobot_new_rollout": True})
    np.testing.assert_array_equal(seen["environment_state"], expected["environment_state"])


def test_the_task_is_told_in_words():
    """Worker processes that lack either of the two are lost to LeRobot 0.6."""
    batch = gymnasium.make_vec("immiscible/PushT-LeRobot-v0", num_envs=2, vectorization_mode="sync")
    assert batch.call("task") == batch.call("task_description")
    assert "T-shaped" in batch.call("task")[0]
