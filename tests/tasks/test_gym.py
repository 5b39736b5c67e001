"""`task=gym:ENV_ID`: observations by key, success by a named key of info, environments of other packages."""

import gymnasium
import numpy as np
import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.demos.store import open_store, write_store
from immiscible_policy.demos.windows import Layout
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task, open_demonstrations, primary, task_windows
from tests.training.helpers import here, refused

MODULE = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Arm(gymnasium.Env):
    '''Seven joints; the action is added to them. Done when they sum to more than a limit.'''

    metadata = {"render_modes": []}

    def __init__(self, render_mode=None, limit=3.0):
        self.limit = limit
        box = lambda *shape: spaces.Box(-np.inf, np.inf, shape, np.float64)
        self.observation_space = spaces.Dict({
            "joints": box(7), "pose": box(3), "view": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
        self.action_space = spaces.Box(-1, 1, (7,), np.float32)

    def observe(self):
        view = np.full((8, 8, 3), int(np.clip(self.joints.sum() * 10, 0, 255)), np.uint8)
        return {"joints": self.joints.copy(), "pose": self.joints[:3] * 2, "view": view}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.joints = self.np_random.normal(size=7) / 10
        return self.observe(), {}

    def step(self, action):
        self.joints = self.joints + action / 10
        done = bool(self.joints.sum() > self.limit)
        return self.observe(), 1.0, done, False, {"lifted": done, "alone": np.array(True), "name": "arm"}


gymnasium.register("lab/Arm-v0", entry_point=Arm, max_episode_steps=20)
gymnasium.register("lab/Endless-v0", entry_point=Arm)
"""
NAME = "gym:lab_arm:lab/Arm-v0"
SMALL = ("experiment=debug", "threads=1", "precision=fp32", "steps=2", "checkpoint_every=2", "eval_every=2",
         "episodes=3", "sampling_steps=1", "keep=all", "horizon=8", "action_steps=4")  # fmt: skip


@pytest.fixture
def lab(tmp_path, write_module, monkeypatch):
    """A package of somebody else's, with environments that importing it registers."""
    write_module("lab_arm", MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    yield tmp_path
    for name in ("lab/Arm-v0", "lab/Endless-v0"):
        gymnasium.registry.pop(name, None)


@pytest.fixture
def store(lab):
    random = np.random.default_rng(0)
    arrays = {"joints": random.normal(size=(60, 7)), "pose": random.normal(size=(60, 3)),
              "view": random.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8),
              "action": random.uniform(-1, 1, (60, 7))}  # fmt: skip
    return write_store(lab / "arm.zarr", {key: value.astype("f4") if key != "view" else value
                                          for key, value in arrays.items()}, [20, 40, 60])  # fmt: skip


class Push:
    """Adds a half to every joint."""

    obs_steps = 2

    def __init__(self, obs):
        self.obs, self.seen = obs, []

    def act(self, observed, generators):
        self.seen.append(observed)
        return np.full((len(observed.numbers), 4, 7), 0.5)


def test_success_is_a_key_of_info_and_without_it_the_score_is_the_return(lab):
    (row, *_) = evaluate(find_task(NAME, success="lifted"), Push("joints"), [1, 2], seed=0, checkpoint=0, batch_size=3)
    assert row.metrics["success"] == 1 and row.metrics["return"] == row.steps < 20
    with pytest.warns(UserWarning, match="dropped: no step reported it, which counts as 0; reported: alone, lifted$"):
        (row, *_) = evaluate(
            find_task(NAME, success="dropped"), Push("joints"), [1, 2], seed=0, checkpoint=0, batch_size=3
        )
    assert row.metrics["success"] == 0
    (row, *_) = evaluate(find_task(NAME, success="alone"), Push("joints"), [1], seed=0, checkpoint=0, batch_size=1)
    assert row.metrics["success"] == 1
    assert [metric.name for metric in find_task(NAME).metrics] == ["return"] and primary(
        find_task(NAME)
    ).name == "return"


def test_observations_are_the_keys_in_the_order_of_the_space(lab):
    task, policy = find_task(NAME), Push("joints,pose,view")
    assert (
        task.observations[0] == "joints,pose,view" and "pose" in task.observations and "view" not in task.observations
    )
    recorder = Recorder(task)
    evaluate(task, policy, [3], seed=0, checkpoint=0, batch_size=2, on_step=recorder.on_step)
    numbers, frames = policy.seen[1]
    assert numbers.shape == (2, 2, 10) and frames["view"].shape == (2, 2, 8, 8, 3)
    np.testing.assert_allclose(numbers[..., 7:], 2 * numbers[..., :3])
    np.testing.assert_allclose(numbers[:, 1, :7] - numbers[:, 0, :7], 0.05)
    assert not task.is_drawn


def test_keys_may_come_in_any_order_and_then_so_do_their_numbers(lab, store):
    task, policy = find_task(NAME), Push("view,pose,joints")
    for obs, known in {"pose,joints": 1, "view,pose,joints": 1, "pose,pose": 0, "view": 0, "pose,speed": 0}.items():
        assert task.can_observe(obs) is bool(known), obs
    assert task.may_see_pictures("pose,view") and not task.may_see_pictures("pose,joints")
    evaluate(task, policy, [3], seed=0, checkpoint=0, batch_size=2)
    numbers = policy.seen[1].numbers
    np.testing.assert_allclose(numbers[..., :3], 2 * numbers[..., 3:6])
    seen = task.observation(open_store(store), "pose,joints")
    np.testing.assert_array_equal(seen[:, :3], open_store(store)["pose"])


def test_starts_are_seeds_of_the_environment(lab):
    policy = Push("pose")
    evaluate(find_task(NAME), policy, [8, 9], seed=0, checkpoint=0, batch_size=2)
    for row, seed in enumerate((8, 9)):
        observation, _ = gymnasium.make("lab_arm:lab/Arm-v0").reset(seed=seed)
        np.testing.assert_array_equal(policy.seen[0].numbers[row, 0], observation["pose"])


def test_arguments_of_the_environment_are_options(lab):
    task = find_task(NAME, success="lifted", max_steps=5, arguments={"limit": 1e9})
    (row,) = evaluate(task, Push("joints"), [1], seed=0, checkpoint=0, batch_size=1)
    assert row.steps == 5 and row.metrics["success"] == 0


def test_demonstrations_are_read_by_the_same_keys(store):
    task = find_task(NAME)
    windows = task_windows(task, open_demonstrations(task, store), "joints,pose", Layout(8, 2, 4))
    assert windows.obs.shape[-1] == 10 and windows.action.shape[-1] == 7


def test_a_box_is_called_observation_and_drawn_by_the_environments_renderer():
    task = find_task("gym:Pendulum-v1")
    assert task.observations == ("observation",) and task.is_drawn and task.fps == 30
    environment = task.make(2, "observation")
    observation, info = environment.reset(seed=[1, 2], options={})
    scenes = task.scenes(environment, observation, info, "observation")
    assert task.draw(scenes[0], 64).shape == (64, 64, 3) and (scenes[0] != scenes[1]).any()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gym:CartPole-v1", {}, r"its actions are Discrete\(2\); a policy acts in a Box"),
        ("gym:Nowhere-v0", {}, "task=gym:Nowhere-v0: NameNotFound"),
        ("gym:no_such_lab:X-v0", {}, "No module named 'no_such_lab'"),
        ("gym:lab_arm:lab/Endless-v0", {}, "has no limit of steps; add task.max_steps="),
        (NAME, {"workers": 0}, "task.workers=0: needs 1 or more"),
        (NAME, {"max_steps": -5}, "task.max_steps=-5: needs 1 or more"),
        (NAME, {"max_steps": 0}, "task.max_steps=0: needs 1 or more"),
        (NAME, {"arguments": {"colour": 1}}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_cannot_be_a_task_is_refused_in_one_line(lab, name, options, says):
    with pytest.raises(CommandError, match=says) as caught:
        find_task(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_another_packages_environment_in_a_grid_of_worker_processes(store, lab):
    """Two arms of two seeds, each seed in a process of its own."""
    result = here("train_policy.py", *SMALL, f"task={NAME}", "task.success=lifted", "seed=0..1",
                  "obs=joints,pose", f"data={store}", "noise=vanilla,knn", f"out={lab / 'grid'}")  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    for arm in ("vanilla", "knn"):
        run = RunDirectory(lab / "grid" / arm)
        assert len(run.episodes()) == 2 and run.summary["pooled"]["success"]
    (table,) = (lab / "grid").glob("*.md")
    assert "| success | last 1 | last | max |" in table.read_text()


def test_mistakes_are_one_line_and_create_nothing(store, lab):
    line = refused(here("train_policy.py", *SMALL, f"task={NAME}", f"data={store}", "obs=view", f"out={lab / 'run'}"))
    assert "unknown obs 'view'" in line and not (lab / "run").exists()
