"""The split is the published one: checked against the protocol written out with masks, and its laws."""

import numpy as np
import pytest

from immiscible_policy.demos import split_episodes


def published(n: int, share: float, limit: int | None, seed: int) -> tuple[list[int], list[int]]:
    """Diffusion Policy's protocol in terms of boolean masks."""
    validation = np.zeros(n, bool)
    if share > 0:
        count = min(max(1, round(n * share)), n - 1)
        validation[np.random.default_rng(seed=seed).choice(n, size=count, replace=False)] = True
    train = ~validation
    if limit is not None and train.sum() > limit:
        candidates = np.nonzero(train)[0]
        drawn = np.random.default_rng(seed=seed).choice(len(candidates), size=limit, replace=False)
        train = np.zeros(n, bool)
        train[candidates[drawn]] = True
    return np.nonzero(train)[0].tolist(), np.nonzero(validation)[0].tolist()


@pytest.mark.parametrize("n", [2, 3, 24, 25, 74, 75, 206, 1000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("limit", [None, 1, 90])
@pytest.mark.parametrize("seed", [0, 42])
def test_equals_the_protocol(n, share, limit, seed):
    train, validation = split_episodes(n, share, limit, seed)
    assert (train.tolist(), validation.tolist()) == published(n, share, limit, seed)
    assert not set(train) & set(validation)
    if limit is None:
        assert sorted([*train, *validation]) == list(range(n))


def test_the_human_split():
    train, validation = split_episodes(206, 0.02, 90)
    assert validation.tolist() == [18, 90, 134, 157]
    assert len(train) == 90
    assert train.tolist() == published(206, 0.02, 90, 42)[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"n_episodes": 0}, "Got n_episodes=0"),
        ({"n_episodes": 1}, "Got n_episodes=1, validation=0.02"),
        ({"n_episodes": 5, "validation": 1.0}, "Got validation=1.0"),
        ({"n_episodes": 5, "validation": -0.1}, "Got validation=-0.1"),
        ({"n_episodes": 5, "validation": float("nan")}, "Got validation=nan"),
        ({"n_episodes": 5, "limit": 0}, "Got limit=0"),
    ],
)
def test_impossible_splits_are_refused(words, says):
    with pytest.raises(ValueError, match=says):
        split_episodes(**{"validation": 0.02} | words)


def test_one_episode_trains_without_validation():
    train, validation = split_episodes(1, validation=0.0)
    assert train.tolist() == [0] and validation.tolist() == []
