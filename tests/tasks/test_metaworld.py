"""`task=metaworld/NAME`, with the real simulator where it is installed."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.train_grid import read_grid
from immiscible_policy.recipes.robot_config import SCHEMA
from immiscible_policy.tasks import find_task
from immiscible_policy.tasks import metaworld as module

needs_metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra [metaworld]")


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    module.library.cache_clear()
    with pytest.raises(CommandError, match=r"task=metaworld needs .*: pip install 'immiscible-policy\[metaworld\]'$"):
        find_task("metaworld/push-v3")
    module.library.cache_clear()


@needs_metaworld
def test_the_grid_of_ten_is_one_run_for_each_task():
    grid = read_grid(["experiment=metaworld10", "out=ten"], SCHEMA)
    names = {options.task["name"] for options in grid.arms.values()}
    assert len(grid.arms) == len(names) == 10
    for options in grid.arms.values():
        name = options.task["name"].removeprefix("metaworld/")
        assert find_task(f"metaworld/{name}").name == f"metaworld/{name}" and options.data.endswith(f"/{name}.zarr")


@pytest.fixture
def push():
    return find_task("metaworld/push-v3")


@needs_metaworld
def test_an_unknown_name_is_refused_and_a_near_one_proposed():
    with pytest.raises(CommandError, match="unknown task of Meta-World 'push-v2'; did you mean .*'push-v3'"):
        find_task("metaworld/push-v2")


@needs_metaworld
@pytest.mark.slow
@pytest.mark.parametrize("name", ["push-v3", "reach-v3", "drawer-open-v3", "button-press-topdown-v3", "assembly-v3"])
def test_an_episode_is_a_function_of_its_seed_whatever_came_before(name):
    """Bit for bit as in an environment that was just built from the scene's files."""

    def states(environment, seed):
        random = np.random.default_rng(seed)
        begun, _ = environment.reset(seed=seed)
        return np.stack([begun, *(environment.step(random.uniform(-1, 1, 4))[0] for _ in range(40))])

    used = module.Seeded(name)
    states(used, 1)
    module.prototype.cache_clear()
    np.testing.assert_array_equal(states(used, 2), states(module.Seeded(name), 2))
    assert (states(used, 2)[0] != states(used, 3)[0]).any()


@needs_metaworld
@pytest.mark.slow
def test_the_goal_is_observed_and_differs_between_starts(push):
    environment = push.make(2, "state")
    observation, _ = environment.reset(seed=[1, 2], options={})
    assert observation.shape == (2, 39) and (observation[0, -3:] != observation[1, -3:]).any()
    assert (np.abs(observation[:, -3:]) > 0).any()
    environment.close()


@needs_metaworld
@pytest.mark.slow
def test_demonstrations_succeed_and_are_a_function_of_seed_and_index(push):
    once, again = (list(push.make_episodes(2, seed=3, workers=1, noise=0.1)) for _ in range(2))
    for episode, same in zip(once, again, strict=True):
        for key, values in episode.items():
            np.testing.assert_array_equal(values, same[key])
        assert 20 < len(episode["state"]) < 500 and np.abs(episode["action"]).max() <= 1


@needs_metaworld
@pytest.mark.slow
def test_a_row_ends_with_success_and_processes_change_nothing(push):
    def rollout(workers):
        environment = find_task("metaworld/push-v3", workers=workers).make(2, "state")
        expert = module.library().policies.ENV_POLICY_MAP["push-v3"]()
        observation, _ = environment.reset(seed=[1, 2], options={})
        for _ in range(120):
            actions = np.stack([expert.get_action(row) for row in observation])
            observation, _, terminated, _, info = environment.step(actions)
        environment.close()
        return observation, terminated, info["success"]

    here, there = rollout(1), rollout(2)
    assert here[1].all() and (here[2] == 1).all()
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(ours, theirs)
