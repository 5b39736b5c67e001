"""The published starts: the frozen list is whole, and is what the published mapping gives."""

import numpy as np
import pytest

from immiscible_envs import starts
from immiscible_envs.simulation import Simulation
from immiscible_envs.starts import draw, legacy_starts, published_starts


def mapping(seed):
    """The published mapping, written as it was published."""
    random = np.random.RandomState(seed=seed)
    return np.array(
        [
            random.randint(50, 450),
            random.randint(50, 450),
            random.randint(100, 400),
            random.randint(100, 400),
            random.randn() * 2 * np.pi - np.pi,
        ]
    )


def test_legacy_starts_are_the_published_mapping():
    seeds = [*range(6), *range(100_000, 100_050), 6, 42, 99_999, 2**32 - 1]
    np.testing.assert_array_equal(legacy_starts(seeds), [mapping(seed) for seed in seeds])
    np.testing.assert_allclose(legacy_starts([100_000]), [[235, 124, 335, 128, -0.90492743]], atol=1e-8)


def test_the_frozen_list_holds_the_test_and_training_seeds():
    seeds, states = published_starts()
    np.testing.assert_array_equal(seeds, [*range(100_000, 100_050), *range(6)])
    assert states.shape == (56, 5) and seeds.dtype == np.int64 and states.dtype == np.float64
    assert len(np.unique(states, axis=0)) == 56


def test_frozen_states_are_what_the_physics_makes_of_the_frozen_arguments():
    simulation = Simulation()
    for seed, state in zip(*published_starts(), strict=True):
        simulation.reset(legacy_starts([seed])[0], "position_first")
        np.testing.assert_allclose(simulation.state, state, rtol=0, atol=1e-12)
        simulation.reset(state)  # the same place by the other road
        np.testing.assert_allclose(simulation.state, state, rtol=0, atol=1e-12)


def test_published_seeds_come_from_the_frozen_list_and_others_are_drawn(monkeypatch):
    monkeypatch.setattr(starts, "draw", lambda seed: [1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(legacy_starts([7]), [[1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(legacy_starts([100_001]), [draw(100_001)])


def test_a_changed_list_is_refused(monkeypatch, tmp_path):
    changed = tmp_path / "published_starts.json"
    changed.write_bytes(starts.STARTS.read_bytes().replace(b"235.0", b"236.0"))
    monkeypatch.setattr(starts, "STARTS", changed)
    starts._frozen.cache_clear()
    with pytest.raises(ValueError, match="is not the frozen list"):
        published_starts()
    monkeypatch.undo()
    assert len(published_starts()[0]) == 56


def test_no_seeds_give_no_starts():
    assert legacy_starts([]).shape == (0, 5)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "100000", True, None])
def test_bad_seeds_are_refused_in_one_line(seed):
    with pytest.raises(ValueError, match="is not a whole number from 0") as error:
        legacy_starts([seed])
    assert repr(seed) in str(error.value) and "\n" not in str(error.value)
