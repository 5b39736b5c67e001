"""Single environments side by side: each row is its environment, in one process or in several."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from immiscible_policy.tasks.episodes import SIDE, Episodes
from immiscible_policy.tasks.gym import make_environments

SEEDS = [5, 6, 7]
BOX = spaces.Box(0, 512, (2,), np.float64)
TARGETS = np.random.default_rng(0).uniform(-300, 500, (60, 3, 2))


def episodes(workers=1, **arguments):
    make = partial(make_environments, "immiscible/Avoid-v0", {"render_mode": "rgb_array", **arguments})
    return Episodes(make, 3, BOX, BOX, workers)


def alone(row):
    """The single environment's episode: observations, rewards, ends, ways; then as it ended."""
    environment = gymnasium.make("immiscible/Avoid-v0")
    observation, info = environment.reset(seed=SEEDS[row])
    steps = [(observation, 0.0, False, info["way"])]
    for targets in TARGETS:
        if steps[-1][2]:
            steps.append((steps[-1][0], 0.0, True, steps[-1][3]))
            continue
        observation, reward, terminated, truncated, info = environment.step(np.clip(targets[row], 0, 512))
        steps.append((observation, reward, terminated or truncated, info["way"]))
    return [np.array(column) for column in zip(*steps, strict=True)]


def together(environment):
    observation, info = environment.reset(seed=SEEDS, options={})
    steps = [(observation, np.zeros(3), np.zeros(3, bool), info["way"])]
    for targets in TARGETS:
        observation, reward, terminated, truncated, info = environment.step(targets)
        steps.append((observation, reward, terminated | truncated, info["way"]))
    return [np.array(column) for column in zip(*steps, strict=True)]  # (T, N, ...)


def test_every_row_is_its_environment_until_its_episode_is_over():
    here = together(episodes())
    for row in range(3):
        for ours, single in zip(here, alone(row), strict=True):
            np.testing.assert_array_equal(ours[:, row], single)
    assert here[2][-1].any()  # some episode is over before the others


class Counter(gymnasium.Env):
    """Observes the whole number that it was given, and says on closing that it was."""

    observation_space = spaces.Box(-10, 10, (1,), np.int64)
    action_space = spaces.Box(0, 10, (1,), np.int64)

    def __init__(self, place):
        self._place = place

    def reset(self, *, seed=None, options=None):
        self._seed = seed
        return np.zeros(1, np.int64), {}

    def step(self, action):
        return action, 0.0, False, False, {"given": np.array([action[0]]), "words": "none", "many": [[1], [1, 2]]}

    def close(self):
        (self._place / f"{self._seed}").touch()


def counters(place, count):
    return [Counter(place) for _ in range(count)]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_whole_numbers_are_rounded_to_and_every_environment_is_closed(tmp_path, workers):
    environment = Episodes(
        partial(counters, tmp_path), 3, Counter.observation_space, Counter.action_space, workers, "given"
    )
    environment.reset(seed=SEEDS)
    observation, *_, infos = environment.step(np.array([[2.98], [0.4], [99.0]]))
    assert observation.tolist() == [[3], [0], [10]] and infos["given"].tolist() == [3, 0, 10]
    assert infos.keys() == {"given"}
    environment.close()
    assert {file.name for file in tmp_path.iterdir()} == {"5", "6", "7"}


def test_rows_of_the_same_seed_are_one_episode_that_is_stepped_once():
    environment = episodes()
    environment.reset(seed=[5, 6, 6])
    observation = environment.step(TARGETS[0])[0]
    assert [one is None for one in environment._group.environments] == [False, False, True]
    np.testing.assert_array_equal(observation[1], observation[2])
    np.testing.assert_array_equal(environment.render()[1], environment.render()[2])
    assert (environment.reset(seed=SEEDS)[0][2] != observation[2]).any()  # afterwards it is a row of its own


@pytest.mark.slow
def test_processes_change_neither_rows_nor_pictures():
    here, several = episodes(), episodes(workers=2)
    for ours, theirs in zip(together(here), together(several), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    pictures = np.stack(here.render())
    assert pictures.shape == (3, SIDE, SIDE, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, np.stack(several.render()))
    several.close()


@pytest.mark.slow
def test_what_fails_in_another_process_is_one_line():
    broken = episodes(workers=2, colour="red")
    with pytest.raises(RuntimeError, match="colour") as caught:
        broken.reset(seed=SEEDS)
    assert "\n" not in str(caught.value)
    broken.close()
