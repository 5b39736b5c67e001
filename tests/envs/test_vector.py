"""The batched environment: every row is the single environment, bit for bit."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from immiscible_envs.geometry import GOAL_POSE
from immiscible_envs.pusht import OBS_TYPES, PushTEnv
from immiscible_envs.vector import PushTVectorEnv
from tests.envs.test_pusht import refused

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
    assert (infos["_coverage"] == mask).all() and not infos["block_pose"][~mask].any()


MODES = list(AutoresetMode)


def test_the_mode_of_autoreset_is_gymnasiums_default_unless_named():
    assert PushTVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert make().metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    for mode in MODES:
        for name in (mode, mode.value):
            assert make(autoreset_mode=name).metadata["autoreset_mode"] is mode


def test_disabled_a_row_goes_on_after_its_end_as_the_single_environment_does():
    vector, single = make(autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=2), PushTEnv()
    vector.reset(options={"state": STATES})
    single.reset(options={"state": STATES[0]})
    for now, action in enumerate(commands(3, 6)):
        observations, _, _, truncated, _ = vector.step(action)
        assert truncated.tolist() == [now >= 1] * COUNT
        np.testing.assert_array_equal(observations[0], single.step(action[0])[0])


def pair(mode, **arguments):
    """Ours and Gymnasium's loop over single environments, in one mode."""
    theirs = gymnasium.make_vec(
        ID, num_envs=COUNT, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **arguments
    )
    return make(autoreset_mode=mode, **arguments), theirs


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert data_equivalence(one, other, exact=True), (one, other)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_every_mode_agrees_with_gymnasiums_loop_over_single_environments(mode, obs_type, monkeypatch):
    """Rows end alone, by success, and together, by the limit of steps; ended rows are reset as the mode wants it."""
    for module in ("pusht", "vector"):
        monkeypatch.setattr(f"immiscible_envs.{module}.SUCCESS_COVERAGE", 0.15)
    ours, theirs = pair(mode, obs_type=obs_type, max_episode_steps=7)
    same(ours.reset(seed=1), theirs.reset(seed=1))
    ends = np.zeros(COUNT, int)
    for now, action in enumerate(commands(2, 40)):
        results = [env.step(action) for env in (ours, theirs)]
        same(*results)
        done = results[0][2] | results[0][3]
        ends += done
        if mode is AutoresetMode.DISABLED and done.any():
            seed = [None, 10 + now, None, 20 + now]
            same(*(env.reset(seed=seed, options={"reset_mask": done.copy()}) for env in (ours, theirs)))
    assert ends.min() >= 4 and len(set(ends.tolist())) > 1


def test_next_step_ignores_the_actions_of_rows_that_begin():
    ours, theirs = pair(AutoresetMode.NEXT_STEP, max_episode_steps=2)
    same(ours.reset(seed=1), theirs.reset(seed=1))
    for action in commands(2, 2):
        results = [env.step(action) for env in (ours, theirs)]
    assert results[0][3].all()
    same(*(env.step(np.full((COUNT, 2), np.nan)) for env in (ours, theirs)))
    refused("action must be finite", lambda: ours.step(np.full((COUNT, 2), np.nan)))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=str)
def test_a_masked_reset_between_steps_agrees_too(mode):
    """Rows that would begin by themselves are begun by hand, and rows in the middle of an episode as well."""
    ours, theirs = pair(mode, max_episode_steps=4)
    same(ours.reset(seed=1), theirs.reset(seed=1))
    for now, action in enumerate(commands(2, 20)):
        same(*(env.step(action) for env in (ours, theirs)))
        if now % 3 == 0:
            mask = np.random.default_rng(now).random(COUNT) < 0.5
            mask[now % COUNT] = True
            same(*(env.reset(seed=now, options={"reset_mask": mask}) for env in (ours, theirs)))


def test_same_step_hands_over_what_the_episode_ended_with():
    vector = make(autoreset_mode=AutoresetMode.SAME_STEP)
    states = np.array([[60.0, 60.0, *GOAL_POSE], *STATES[1:]])
    vector.reset(seed=0, options={"state": states})
    observations, rewards, terminated, _, infos = vector.step(np.full((COUNT, 2), 60.0))
    assert terminated.tolist() == infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True] + [False] * 3
    assert rewards[0] == 1.0 and infos["final_info"]["coverage"][0] > 0.95 > infos["coverage"][0]
    np.testing.assert_array_equal(infos["final_obs"][0][2:], infos["final_info"]["block_pose"][0])
    assert infos["final_obs"][1] is None and (observations[0] != infos["final_obs"][0]).any()


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
        ({"autoreset_mode": "sometimes"}, "unknown autoreset_mode 'sometimes'; known: NextStep, SameStep, Disabled"),
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
