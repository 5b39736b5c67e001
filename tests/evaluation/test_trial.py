"""A trial of one step: what is wrong with a task is one line before any training."""

import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.store import write_store
from immiscible_policy.evaluation.trial import try_task
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.policy import PolicySpec
from immiscible_policy.tasks import Metric, SetMetric, Task, find_task
from tests.training.helpers import here, refused


class Point(gymnasium.Env):
    """A point in the plane, which an action moves."""

    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.place, {"distance": float(np.abs(self.place).sum())}

    def step(self, action):
        self.place = np.clip(self.place + action, -1, 1)
        return self.place, 0.0, False, False, {"distance": float(np.abs(self.place).sum())}


class Reach(Task):
    """A task without a fault."""

    name = "reach"
    title = about = measured = "Reach"
    max_steps = 5
    observations = ("place",)
    metrics = (Metric("far", "far", "max", lambda reward, info: info["distance"]),)

    def make(self, num_envs, obs):
        return SyncVectorEnv([Point] * num_envs)


class Stuck(Point):
    """Cannot be stepped."""

    def step(self, action):
        return self.place / self.weight


def with_metric(read, reduce="last"):
    return {"metrics": (Metric("near", "near", reduce, read),)}


def trial(task, obs_dim=2, cameras=(), actions=2):
    encoder = EncoderSpec(cameras, 8, 16) if cameras else None
    spec = PolicySpec(
        task.observations[0], obs_dim, 2, 16, 2, 8, 1.0, (16,), 16, 5, 8, "flow", "velocity", 100, encoder=encoder
    )
    try_task(task, spec, np.full(actions, 0.1, np.float32))


@pytest.mark.parametrize(
    ("change", "sizes", "says"),
    [
        ({"make": lambda self, num_envs, obs: SyncVectorEnv([Stuck] * num_envs)}, {},
         "fails in a trial of one step: AttributeError: 'Stuck' object has no attribute 'weight' (test_trial.py, line"),
        ({"make": lambda self, num_envs, obs: None}, {}, "AttributeError: 'NoneType' object"),
        ({}, {"obs_dim": 5}, "obs=place sees numbers (2, 2, 2), the demonstrations give (2, 2, 5)"),
        ({}, {"cameras": ("wrist",)}, "obs=place sees the cameras [], the demonstrations ['wrist']"),
        ({}, {"actions": 7}, "takes 2 numbers per action, the demonstrations have 7"),
        (with_metric(lambda reward, info: info["height"]), {}, "KeyError: 'height' (test_trial.py, line"),
        (with_metric(lambda reward, info: 1.0), {}, "near has shape () for 2 environments; return (2,)"),
        (with_metric(lambda reward, info: info["distance"][:, None], "max"), {}, "near has shape (2, 1)"),
        (with_metric(lambda reward, info: reward * np.nan), {}, "after one step its metric near is [nan nan]"),
        ({"set_metrics": (SetMetric("ways", lambda metrics: metrics["way"].max()),)}, {}, "KeyError: 'way'"),
    ],
)  # fmt: skip
def test_a_fault_of_the_task_is_one_line(change, sizes, says):
    task = type("Faulty", (Reach,), change)()
    with pytest.raises(CommandError) as caught:
        trial(task, **sizes)
    assert says in str(caught.value) and "task=reach" in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_without_a_fault_passes():
    trial(Reach())


@pytest.mark.parametrize(("name", "numbers", "actions"), [("pusht", 20, 2), ("avoid", 2, 2)])
def test_our_own_tasks_pass_within_a_second(name, numbers, actions):
    task = find_task(name)
    begin = time.process_time()
    trial(task, numbers, actions=actions)
    assert time.process_time() - begin < 1


def test_training_is_refused_before_anything_is_created(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"observation": random.normal(size=(60, 3)), "action": random.normal(size=(60, 2))}
    store = write_store(tmp_path / "pendulum.zarr", arrays, [20, 40, 60])
    words = ("experiment=debug", "task=gym:Pendulum-v1", f"data={store}", f"out={tmp_path / 'run'}")
    line = refused(here("train_policy.py", *words))
    assert "its environment takes 1 numbers per action, the demonstrations have 2" in line
    assert not (tmp_path / "run").exists()
