"""Shares of modes: the demonstrations', the majority, and the floors that chance gives."""

import numpy as np
import pytest

from immiscible_envs.geometry import GOAL_POSE
from immiscible_envs.modes import CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED, classify
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.lab.modality.arms import (
    count_modes,
    demonstrated_modes,
    majority,
    majority_floor,
    shares,
    total_variation,
    total_variation_floor,
)
from immiscible_policy.tasks import find_task, open_demonstrations
from immiscible_policy.tasks.pusht import reflect

PUSHT = find_task("pusht")
OPPOSITE = np.array([COUNTER_CLOCKWISE, CLOCKWISE, UNDECIDED])


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return open_demonstrations(PUSHT)


def test_every_embedded_demonstration_turns_the_other_way_in_the_mirror(demos: Demonstrations):
    twin = reflect(demos)
    modes, mirrored = (np.array([classify(of["state"][steps, 4]) for steps in of.episodes]) for of in (demos, twin))
    assert np.array_equal(mirrored, OPPOSITE[modes])
    assert set(modes) == {CLOCKWISE, COUNTER_CLOCKWISE, UNDECIDED}


def test_demonstrations_that_begin_upside_down_are_all_decided_and_balanced_by_the_mirror(demos: Demonstrations):
    counts = demonstrated_modes(PUSHT, PUSHT.modes, demos)
    assert counts[UNDECIDED] == 0 and counts.sum() > 20
    assert demonstrated_modes(PUSHT, PUSHT.modes, reflect(demos)).tolist() == counts[OPPOSITE].tolist()
    assert demonstrated_modes(PUSHT, PUSHT.modes, PUSHT.mirror(demos)).tolist() == [counts.sum(), counts.sum(), 0]


def test_only_demonstrations_that_begin_upside_down_are_counted(demos: Demonstrations):
    first = np.array([demos["state"][steps, 4][0] for steps in demos.episodes])
    off = np.abs(np.angle(np.exp(1j * (first - GOAL_POSE[2] - np.pi))))
    assert demonstrated_modes(PUSHT, PUSHT.modes, demos).sum() == (off <= np.pi / 6).sum()
    assert demonstrated_modes(PUSHT, PUSHT.modes, demos.select(np.flatnonzero(off > np.pi / 6))).tolist() == [0, 0, 0]


def test_counts_of_modes():
    modes = [[CLOCKWISE, UNDECIDED, CLOCKWISE], [COUNTER_CLOCKWISE] * 3]
    assert count_modes(modes, 3).tolist() == [[2, 0, 1], [0, 3, 0]]


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
    result = majority(counts)
    assert majority_floor(counts[0]) == pytest.approx(result.mean(), abs=4 * result.std() / len(result) ** 0.5)


def test_nothing_to_share_out_is_refused():
    with pytest.raises(ValueError, match="at least one rollout"):
        total_variation([0, 0, 0], [1, 1, 0])
