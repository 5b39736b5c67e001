"""When selection happens."""

import pytest
import torch

from immiscible_policy.noise import make_selector
from immiscible_policy.noise.schedule import Schedule, spread


def test_without_a_schedule_selection_is_always_on_and_needs_no_step():
    assert Schedule().strength(None) == 1


def test_switched_on_and_off_at_once():
    strength = Schedule(start=3, stop=6).strength
    assert [strength(step) for step in range(8)] == [0, 0, 0, 1, 1, 1, 0, 0]


def test_shares_of_a_batch_are_evenly_spread():
    assert spread(3, 8).tolist() == [0, 2, 5] and spread(8, 8).tolist() == list(range(8)) and len(spread(0, 8)) == 0
    for parts in (2, 4):  # of batches chosen together each gets its share
        counts = torch.bincount(spread(20, 64) * parts // 64, minlength=parts)
        assert counts.max() - counts.min() <= 1


def test_ramps_up_after_start_and_down_before_stop():
    strength = Schedule(start=2, stop=12, ramp=3).strength
    expected = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert [strength(step) for step in range(13)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Schedule(0, 7, 5), Schedule(1, 2, 50), Schedule(4, None, 9), Schedule(0, 3, 0)])
def test_strength_stays_between_zero_and_one_and_changes_by_at_most_a_ramp_step(schedule):
    values = [schedule.strength(step) for step in range(80)]
    assert all(0 <= value <= 1 for value in values)
    assert all(abs(a - b) <= 1 / (schedule.ramp + 1) + 1e-12 for a, b in zip(values, values[1:], strict=False))


def test_candidates_grow_from_one_to_k():
    select = make_selector("knn", k=9, start=100, ramp=7)
    assert [select.candidates(step) for step in (0, 99, 100, 103, 107, 5000)] == [1, 1, 2, 5, 9, 9]


def test_before_its_start_knn_is_vanilla():
    x = torch.ones(6, 3)
    select, vanilla = make_selector("knn", k=8, start=10), make_selector("vanilla")
    generators = [torch.Generator().manual_seed(1) for _ in range(3)]
    assert torch.equal(select(x, step=9, generator=generators[0]), vanilla(x, generator=generators[1]))
    after = select(x, step=10, generator=generators[2])
    assert not torch.equal(after, vanilla(x, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("schedule", "steps"), [(Schedule(0, 10, 500), 99), (Schedule(5, None, 99), 20), (Schedule(2, 9, 1), 7)]
)
def test_the_highest_strength_is_the_largest_of_all_steps(schedule, steps):
    assert schedule.highest(steps) == pytest.approx(max(schedule.strength(step) for step in range(steps)))
