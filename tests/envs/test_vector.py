"""The batched environment: every row is the single environment, bit for bit."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from immiscible_envs.geometry import GOAL_POSE
from immiscible_envs.pusht import OBS_TYPES
from immiscible_envs.vector import PushTVectorEnv

ID = "immiscible/PushT-v0"
COUNT = 4
STATES = np.array([[256.0, 180.0 + 5 * row, 256.0, 230.0, 0.3 * row] for row in range(COUNT)])
GOALS = np.array([[200.0 + 20 * row, 256.0, 0.5 * row] for row in range(COUNT)])
OPTIONS = {
    "none": {},
    "state": {"state": STATES},
    "legacy_seed": {"legacy_seed": np.arange(100_000, 100_000 + COUNT)},
    "legacy_seed as a list": {"legacy_seed": [0, 5, 100_049, 77]},
    "state and one goal": {"state": STATES, "goal_pose": (240.0, 250.0, 0.1)},
    "goals": {"goal_pose": GOALS},
}


def make(**arguments):
    return gymnasium.make_vec(ID, num_envs=COUNT, vectorization_mode="vector_entry_point", **arguments)


def commands(seed, steps):
    return np.clip(256 + np.random.default_rng(seed).normal(0, 120, (steps, COUNT, 2)), 0, 512)


def row_of(options, row):
    """The options that a single environment takes for what a row of the batch is given."""
    batched = dict(options)
    if "goal_pose" in batched:
        batched["goal_pose"] = np.broadcast_to(batched["goal_pose"], (COUNT, 3))
    return {key: column[row] for key, column in batched.items()}


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_rows_are_single_environments_bit_for_bit(obs_type, options):
    vector = make(obs_type=obs_type)
    singles = [gymnasium.make(ID, obs_type=obs_type) for _ in range(COUNT)]
    actions = commands(0, 12)
    batched = [vector.reset(seed=10, options=options), *(vector.step(action) for action in actions)]
    for row, single in enumerate(singles):
        one = [single.reset(seed=10 + row, options=row_of(options, row))]
        one += [single.step(action[row]) for action in actions]
        for now, (together, alone) in enumerate(zip(batched, one, strict=True)):
            observation = list(iterate(vector.observation_space, together[0]))[row]
            assert data_equivalence(observation, alone[0], exact=True), (row, now)
            assert tuple(entry[row] for entry in together[1:-1]) == alone[1:-1]
            for key, value in alone[-1].items():
                np.testing.assert_array_equal(together[-1][key][row], value)
    assert vector.observation_space.contains(batched[-1][0])


def test_infos_have_gymnasiums_masks_and_the_single_environments_keys():
    vector, single = make(), gymnasium.make(ID)
    infos = vector.reset(seed=0)[1]
    keys = set(single.reset(seed=0)[1])
    assert set(infos) == keys | {f"_{key}" for key in keys}
    assert all(infos[f"_{key}"].all() and len(infos[key]) == COUNT for key in keys)
    assert infos["is_success"].dtype == np.bool_


def test_seeds_may_be_given_row_by_row():
    vector = make()
    by_number = vector.reset(seed=3)[0]
    np.testing.assert_array_equal(vector.reset(seed=[3, 4, 5, 6])[0], by_number)
    np.testing.assert_array_equal(vector.reset(seed=[6, None, 4, 3])[0][[3, 2, 0]], by_number[[0, 1, 3]])
    assert (vector.reset()[0] != by_number).any(axis=1).all()  # the generators have gone on


def test_a_mask_resets_its_rows_and_leaves_the_others():
    vector = make()
    vector.reset(options={"state": STATES})
    before = vector.step(commands(1, 1)[0])[0]
    mask = np.array([True, False, False, True])
    after, infos = vector.reset(options={"state": STATES, "reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_allclose(after[mask], STATES[mask], atol=1e-9)
    assert infos["n_contacts"][0] == 0


def test_the_mode_of_autoreset_is_named_and_disabled():
    assert make().metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert PushTVectorEnv.metadata["autoreset_mode"] is AutoresetMode.DISABLED


def test_without_autoreset_a_row_goes_on_after_its_end():
    vector = make(max_episode_steps=2)
    start = vector.reset(options={"state": STATES - (0, 100, 0, 0, 0)})[0]
    ends = [vector.step(start[:, :2])[3].tolist() for _ in range(3)]
    assert ends == [[False] * COUNT, [True] * COUNT, [True] * COUNT]
    np.testing.assert_array_equal(vector.step(start[:, :2])[0], start)


def test_next_step_autoreset_agrees_with_gymnasiums_loop_over_single_environments():
    ours = make(autoreset_mode=AutoresetMode.NEXT_STEP, max_episode_steps=5)
    theirs = gymnasium.make_vec(ID, num_envs=COUNT, vectorization_mode="sync", max_episode_steps=5)
    assert theirs.metadata["autoreset_mode"] is ours.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert data_equivalence(ours.reset(seed=1), theirs.reset(seed=1), exact=True)
    for action in commands(2, 14):
        for one, other in zip(ours.step(action), theirs.step(action), strict=True):
            assert data_equivalence(one, other, exact=True)


def test_success_ends_a_row_alone():
    vector = make()
    states = np.array([[60.0, 60.0, *GOAL_POSE], *STATES[1:]])
    states[1:, :2] = 60.0
    vector.reset(options={"state": states})
    _, rewards, terminated, truncated, infos = vector.step(np.full((COUNT, 2), 60.0))
    assert terminated.tolist() == infos["is_success"].tolist() == [True, False, False, False]
    assert rewards[0] == 1.0 and (rewards[1:] < 1.0).all() and not truncated.any()


def test_results_are_the_callers_own():
    vector = make()
    observations, infos = vector.reset(options={"state": STATES - (0, 100, 0, 0, 0)})
    actions = observations[:, :2].copy()
    kept = observations.copy()
    for array in (observations, infos["block_pose"], infos["goal_pose"]):
        array[:] = -1.0
    observations, _, _, _, infos = vector.step(actions)
    np.testing.assert_array_equal(observations, kept)
    np.testing.assert_array_equal(infos["goal_pose"], np.tile(GOAL_POSE, (COUNT, 1)))


def test_render_gives_one_picture_per_row():
    vector = make(render_mode="rgb_array")
    vector.reset(seed=0)
    pictures = vector.render()
    assert len(pictures) == COUNT and all(one.shape == (512, 512, 3) for one in pictures)
    assert (pictures[0] != pictures[1]).any()
    assert make().render() is None
    vector.close()
    vector.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": STATES}, "unknown reset option 'states'; known: state, .*, goal_pose, reset_mask"),
        ({"state": STATES[0]}, r"option state must have shape \(4, 5\), got \(5,\)"),
        ({"state": STATES, "legacy_seed": [1, 2, 3, 4]}, "both name a start"),
        ({"legacy_seed": 100_000}, r"legacy_seed must have shape \(4,\), got \(\)"),
        ({"legacy_seed": [1, 2, 3]}, r"legacy_seed must have shape \(4,\), got \(3,\)"),
        ({"legacy_seed": [1, 2, 3, -4]}, "legacy seed -4"),
        ({"goal_pose": GOALS[:2]}, r"goal_pose must have shape \(4, 3\)"),
        ({"reset_mask": [1, 0, 0, 0]}, "reset_mask must be 4 booleans"),
        ({"reset_mask": np.zeros(4, bool)}, "at least one of them true"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_any_row_begins(options, message):
    vector = make()
    before = vector.reset(seed=0)[0]
    refused(message, lambda: vector.reset(options=options))
    still = vector.step(before[:, :2])[0]
    np.testing.assert_array_equal(still[:, :2], before[:, :2])


@pytest.mark.parametrize("actions", [np.zeros(2), np.zeros((COUNT, 3)), np.full((COUNT, 2), np.nan)], ids=str)
def test_bad_actions_are_refused_before_any_row_advances(actions):
    vector = make()
    before = vector.reset(options={"state": STATES})[0]
    refused("^action must", lambda: vector.step(actions))
    np.testing.assert_array_equal(vector.step(before[:, :2])[0][:, :2], before[:, :2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs 0 must be at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps 0 must be at least 1"),
        ({"obs_type": "pixels"}, "unknown obs_type"),
        ({"render_mode": "human"}, "unknown render_mode of the vector environment 'human'; known: rgb_array"),
        ({"autoreset_mode": AutoresetMode.SAME_STEP}, "use DISABLED or NEXT_STEP"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    refused(message, lambda: PushTVectorEnv(**arguments))


@pytest.mark.parametrize(
    ("seed", "named"),
    [
        (-1, "-1"),
        (1.5, "1.5"),
        ([1.7, 2, 3, 4], "1.7"),
        ([1, None, -2, 4], "-2"),
        (np.array([0.5, 1, 2, 3]), "0.5"),
        ("abcd", "'abcd'"),
    ],
    ids=str,
)
def test_bad_seeds_are_refused_before_any_row_begins(seed, named):
    vector, same = make(), make()
    before = vector.reset(seed=0)[0]
    same.reset(seed=0)
    refused(f"^seed {named} is not a whole number >= 0$", lambda: vector.reset(seed=seed))
    np.testing.assert_array_equal(vector.step(before[:, :2])[0], same.step(before[:, :2])[0])
    np.testing.assert_array_equal(vector.reset()[0], same.reset()[0])  # the generators have not been touched


def test_seeds_of_another_number_are_refused():
    refused("seed has 2 entries for num_envs=4", lambda: make().reset(seed=[1, 2]))
