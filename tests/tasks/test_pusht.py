"""PushT as policies see it: a recorded step and an environment in that state show the same."""

import numpy as np
import pytest

from immiscible_policy.tasks import open_demonstrations
from immiscible_policy.tasks.pusht import PushT


@pytest.mark.parametrize("obs", [obs for obs in PushT.observations if obs != "image"])
def test_an_environment_shows_what_was_recorded(obs):
    task = PushT()
    demos = open_demonstrations(task)
    steps = np.linspace(0, len(demos) - 1, 6).astype(int)
    environment = task.make(len(steps), obs)
    shown, _ = environment.reset(options={"state": demos["state"][steps].astype(np.float64)})
    seen = task.look([shown, shown], obs, keep=len(steps)).numbers
    recorded = task.observation(demos, obs)[steps]
    assert seen.shape == (len(steps), 2, recorded.shape[1])
    np.testing.assert_allclose(seen[:, 1], recorded, atol=3.0 if obs == "keypoints" else 1.0)
    assert recorded.shape[1] == {"keypoints": 20, "corners": 18, "state": 5, "agent": 2, "nothing": 1}[obs]


def test_corners_are_what_a_dataset_of_lerobot_shows():
    task = PushT()
    demos = open_demonstrations(task)
    features = task.features(demos)
    shown = [features[key].values for key in ("observation.environment_state", "observation.state")]
    np.testing.assert_array_equal(task.observation(demos, "corners"), np.concatenate(shown, axis=1))
