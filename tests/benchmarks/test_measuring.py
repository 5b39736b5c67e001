"""Turns, medians and paired ratios."""

import pytest

from benchmarks.measuring import medians, ratio, require_positive, short, take_turns, timed


def test_candidates_take_turns_in_order_and_the_first_turn_is_not_counted():
    calls = []

    def candidate(name):
        def turn():
            calls.append(name)
            return float(len(calls))

        return turn

    seconds = take_turns({"a": candidate("a"), "b": candidate("b")}, turns=2)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_ratio_is_the_median_of_the_paired_ratios_not_the_ratio_of_medians():
    seconds = {"ours": [1.0, 4.0, 5.0], "theirs": [2.0, 1.0, 5.0]}
    assert ratio(seconds, "ours", "theirs") == 1.0  # of 0.5, 4, 1; the medians are 4 and 2


def test_a_ratio_does_not_change_when_a_turn_is_slow_for_all():
    even = {"ours": [1.0, 1.0, 1.0], "theirs": [3.0, 3.0, 3.0]}
    slow = {name: [first, 7 * second, third] for name, (first, second, third) in even.items()}
    assert ratio(slow, "theirs", "ours") == ratio(even, "theirs", "ours") == 3.0


def test_medians_are_in_milliseconds():
    assert medians({"a": [0.001, 0.5, 0.002]}) == {"a": 2.0}


def test_timed_is_per_call():
    calls = []
    assert 0 < timed(lambda: calls.append(sum(range(1000))), calls=5) < 1 and len(calls) == 5


def test_ranges_with_a_number_below_one_are_refused():
    require_positive(counts=[1, 2], threads=[4, 1])
    with pytest.raises(ValueError, match="threads=0: needs 1 or more"):
        require_positive(counts=[1, 2], threads=[4, 0])


@pytest.mark.parametrize(("value", "message"), [(None, "-"), (0.012345, "0.0123"), (12345.6, "12,346"), (999.4, "999")])
def test_numbers_in_tables(value, message):
    assert short(value) == message
