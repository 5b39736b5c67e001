"""Symmetric starts are their own mirror images, modes obey the mirror, and the floors are what chance gives."""

import gymnasium
import numpy as np
import pytest

import immiscible_envs  # noqa: F401 - registers the environment
from immiscible_envs.geometry import BAR, GOAL_POSE, STEM, mirror_state, place
from immiscible_policy.demos.mirror import mirror, reflect
from immiscible_policy.demos.store import Demonstrations, embedded_store, open_store
from immiscible_policy.lab.modality.modes import (
    CLOCKWISE,
    COUNTER_CLOCKWISE,
    DECIDED_AT,
    UNDECIDED,
    classify,
    count_modes,
    demonstrated_modes,
    majority,
    majority_floor,
    shares,
    symmetric_starts,
    total_variation,
    total_variation_floor,
    turned,
)

OPPOSITE = np.array([COUNTER_CLOCKWISE, CLOCKWISE, UNDECIDED])


def wander(rng: np.random.Generator, steps: int = 60, count: int = 200) -> np.ndarray:
    """Angles (T, N) of blocks that drift one way or the other."""
    return np.cumsum(rng.normal(rng.normal(0, 0.04, count), 0.2, (steps, count)), axis=0)


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return open_store(embedded_store())


@pytest.mark.parametrize("goal", [GOAL_POSE, (200.0, 270.0, 1.9)])
def test_symmetric_starts_are_their_own_mirror_images(goal):
    starts = symmetric_starts(goal)
    mirrored = mirror_state(starts, goal)
    np.testing.assert_allclose(mirrored[:, :4], starts[:, :4], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * mirrored[:, 4]), np.exp(1j * starts[:, 4]), atol=1e-9)
    np.testing.assert_allclose(np.cos(starts[:, 4] - goal[2]), -1)  # upside down
    assert len(np.unique(starts, axis=0)) == len(starts) >= 3


def test_an_episode_begins_exactly_at_a_symmetric_start_and_touches_nothing():
    env = gymnasium.make("immiscible/PushT-v0", obs_type="state")
    for start in symmetric_starts():
        state, info = env.reset(options={"state": start})
        np.testing.assert_allclose(state, start, atol=1e-9)
        state, _, _, _, info = env.step(start[:2])
        np.testing.assert_allclose(state, start, atol=1e-9)
        assert info["n_contacts"] == 0
        corners = np.concatenate([place(part, start[2:]) for part in (BAR, STEM)])
        assert (corners > 7).all() and (corners < 504).all()  # inside the walls


def test_a_positive_turn_is_clockwise_on_the_screen():
    right, turned = (place([(10.0, 0.0)], (0.0, 0.0, angle))[0] for angle in (0.0, 0.3))
    assert turned[1] > right[1]  # y points down: what points right turns downwards
    assert classify([0.0, 1.0, 2.0]) == CLOCKWISE
    assert classify([0.0, -1.0, -2.0]) == COUNTER_CLOCKWISE


def test_a_mode_takes_a_quarter_turn():
    assert classify(np.linspace(1, 1 + DECIDED_AT + 1e-9, 20)) == CLOCKWISE
    assert classify(np.linspace(1, 1 + DECIDED_AT - 1e-9, 20)) == UNDECIDED
    assert classify(np.linspace(1, 1 - DECIDED_AT - 1e-9, 20)) == COUNTER_CLOCKWISE
    jitter = np.random.default_rng(0).normal(0, 0.05, (300, 100))
    assert (classify(jitter) == UNDECIDED).all()
    assert classify([2.0]) == UNDECIDED


def test_the_way_back_does_not_count():
    there_and_back = np.concatenate([np.linspace(0, 1.5, 20), np.linspace(1.5, -3, 60)])
    assert classify(there_and_back) == COUNTER_CLOCKWISE
    assert classify(np.concatenate([np.linspace(0, 3, 40), np.linspace(3, 0, 40)])) == UNDECIDED


def test_turns_of_consecutive_parts_add_up():
    angles = wander(np.random.default_rng(1))
    np.testing.assert_allclose(turned(angles[:31])[-1] + turned(angles[30:]), turned(angles)[30:], atol=1e-12)


def test_multiples_of_two_pi_change_nothing():
    rng = np.random.default_rng(2)
    angles = wander(rng)
    np.testing.assert_allclose(
        turned(angles + 2 * np.pi * rng.integers(-3, 4, angles.shape)), turned(angles), atol=1e-12
    )
    assert np.array_equal(classify(angles % (2 * np.pi)), classify(angles))
    assert set(classify(angles)) == {CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED}


def test_a_mirrored_path_has_the_opposite_mode():
    rng = np.random.default_rng(3)
    angles = wander(rng)
    states = np.concatenate([rng.uniform(50, 450, (*angles.shape, 4)), angles[..., None] % (2 * np.pi)], axis=-1)
    assert np.array_equal(classify(mirror_state(states)[..., 4]), OPPOSITE[classify(states[..., 4])])


def test_every_embedded_demonstration_turns_the_other_way_in_the_mirror(demos: Demonstrations):
    twin = reflect(demos)
    modes, mirrored = (np.array([classify(of.state[each, 4]) for each in of.episodes]) for of in (demos, twin))
    assert np.array_equal(mirrored, OPPOSITE[modes])
    assert set(modes) == {CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED}


def test_demonstrations_that_begin_upside_down_are_all_decided_and_balanced_by_the_mirror(demos: Demonstrations):
    counts = demonstrated_modes(demos)
    assert counts[UNDECIDED] == 0 and counts.sum() > 20
    assert demonstrated_modes(reflect(demos)).tolist() == counts[OPPOSITE].tolist()
    assert demonstrated_modes(mirror(demos)).tolist() == [counts.sum(), counts.sum(), 0]


def test_only_demonstrations_that_begin_upside_down_are_counted(demos: Demonstrations):
    first = np.array([demos.state[each, 4][0] for each in demos.episodes])
    off = np.abs(np.angle(np.exp(1j * (first - GOAL_POSE[2] - np.pi))))
    assert demonstrated_modes(demos).sum() == (off <= np.pi / 6).sum()
    assert demonstrated_modes(demos.select(np.flatnonzero(off > np.pi / 6))).tolist() == [0, 0, 0]


def test_counts_of_modes():
    modes = [[CLOCKWISE, UNDECIDED, CLOCKWISE], [COUNTER_CLOCKWISE] * 3]
    assert count_modes(modes).tolist() == [[2, 0, 1], [0, 3, 0]]


def test_total_variation_by_hand():
    assert total_variation([[5, 5, 0], [10, 0, 0], [0, 0, 7], [4, 2, 4]], [42, 42, 0]) == pytest.approx(
        [0, 0.5, 1, 0.4]  # the last: (|0.4 - 0.5| + |0.2 - 0.5| + 0.4) / 2
    )
    a, b = np.array([3, 4, 5]), np.array([7, 1, 0])
    assert total_variation(a, b) == pytest.approx(total_variation(b, a))
    assert total_variation(a, 100 * a) == 0


def test_the_floor_of_total_variation_is_what_draws_give():
    assert total_variation_floor([1, 1, 0], 1) == pytest.approx(0.5)
    assert total_variation_floor([1, 1, 0], 2) == pytest.approx(0.25)  # 1/2 of the time both fall the same way
    assert total_variation_floor([5, 0, 0], 3) == pytest.approx(0)
    reference, rng = [5, 3, 2], np.random.default_rng(4)
    distances = total_variation(rng.multinomial(25, shares(reference), 40_000), reference)
    assert total_variation_floor(reference, 25) == pytest.approx(
        distances.mean(), abs=4 * distances.std() / len(distances) ** 0.5
    )


def test_the_majority_is_taken_start_by_start():
    assert majority([[3, 1, 0], [0, 4, 2]]) == pytest.approx(7 / 8)
    assert majority([[10, 0, 0], [0, 10, 0]]) == 1  # each start has picked a direction, though not the same one
    assert majority([[5, 5, 0], [5, 5, 3]]) == 0.5
    assert np.isnan(majority([[[0, 0, 4]], [[1, 0, 3]]])).tolist() == [True, False]


def test_the_floor_of_the_majority_is_that_of_fair_coins():
    assert majority_floor([[1, 0, 9]]) == pytest.approx(1)
    assert majority_floor([[1, 1, 0]]) == pytest.approx(0.75)
    assert np.isnan(majority_floor([[0, 0, 1]]))
    rng = np.random.default_rng(5)
    clockwise = rng.binomial([25, 4], 0.5, (40_000, 2))
    counts = np.stack([clockwise, [25, 4] - clockwise, np.ones_like(clockwise)], axis=-1)
    found = majority(counts)
    assert majority_floor(counts[0]) == pytest.approx(found.mean(), abs=4 * found.std() / len(found) ** 0.5)


def test_nothing_to_share_out_is_refused():
    with pytest.raises(ValueError, match="at least one rollout"):
        total_variation([0, 0, 0], [1, 1, 0])
