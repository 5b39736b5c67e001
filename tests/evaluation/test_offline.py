"""The scores on held-out demonstrations: by brute force, by hand, and as the scoring rule that they are to be."""

import numpy as np
import pytest
import torch

from immiscible_policy.demos import Layout, make_windows
from immiscible_policy.evaluation.offline import HeldOut, energy_score, linear_r2, score

LAYOUT = Layout(horizon=8, obs_steps=2, action_steps=3)


def episodes(lengths=(11, 14), seed=0):
    """Windows of episodes whose observation is (episode, step) and whose action is three times that."""
    observation = np.concatenate([np.stack([np.full(n, i), np.arange(n)], axis=1) for i, n in enumerate(lengths)])
    return make_windows(observation, 3.0 * observation, np.cumsum(lengths), LAYOUT)


class Recorder:
    """Does what was recorded, and `off` more; it reads the episode and the step from what it sees."""

    obs, obs_steps = "state", LAYOUT.obs_steps

    def __init__(self, off=0.0, spread=0.0):
        self.off, self.spread, self.seen = off, spread, []

    def act(self, observed, generators):
        now = observed.numbers[:, -1]  # (B, 2)
        self.seen.append(now)
        noise = np.array([torch.randn((), generator=generator).item() for generator in generators])
        steps = now[:, None] + np.arange(LAYOUT.action_steps)[None, :, None] * [0, 1]
        return 3.0 * steps + self.off + self.spread * noise[:, None, None]


def test_the_energy_score_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    samples, recorded = torch.randn(5, 4, 3, 2, generator=generator), torch.randn(4, 3, 2, generator=generator)
    counted = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    for row, result in enumerate(energy_score(samples, recorded, counted)):
        own = counted[row]

        def distance(a, b, own=own):
            return float((a[own] - b[own]).square().mean().sqrt())

        to_recorded = np.mean([distance(sample, recorded[row]) for sample in samples[:, row]])
        pairs = [distance(a, b) for i, a in enumerate(samples[:, row]) for j, b in enumerate(samples[:, row]) if i != j]
        assert float(result) == pytest.approx(to_recorded - np.mean(pairs) / 2, abs=1e-6)


def test_the_energy_score_is_least_for_the_law_of_the_demonstrator():
    """Two equally good ways, -1 and 1: always going one of them, or between them, scores worse than doing both."""
    generator = torch.Generator().manual_seed(0)

    def ways(*shape):
        return 2.0 * torch.randint(2, (*shape, 1, 1), generator=generator) - 1

    recorded, counted = ways(4000), torch.ones(4000, 1, dtype=torch.bool)
    laws = {"both": ways(8, 4000), "one": torch.ones(8, 4000, 1, 1), "between": torch.zeros(8, 4000, 1, 1)}
    values = {law: float(energy_score(samples, recorded, counted).mean()) for law, samples in laws.items()}
    expected = {"both": 0.5, "one": 1.0, "between": 1.0}  # E|X - y| - E|X - X'| / 2 by hand
    assert values == pytest.approx(expected, abs=0.05)


def test_a_policy_is_asked_where_it_would_plan_and_scored_on_what_was_recorded():
    policy = Recorder()
    rows, figures = score(policy, HeldOut(episodes(), LAYOUT, [7, 2], torch.tensor([1.5, 3.0])), seed=4, checkpoint=9)
    assert [(row.start, row.seed, row.checkpoint) for row in rows] == [(7, 4, 9), (2, 4, 9)]
    places = {tuple(row) for batch in policy.seen for row in batch.tolist()}
    assert places == {(0, 0), (0, 3), (0, 6), (1, 0), (1, 3), (1, 6), (1, 9)}  # as far as windows go
    assert all(value == pytest.approx(0, abs=1e-5) for row in rows for value in row.metrics.values())
    assert [row.steps for row in rows] == [9, 12]


def test_errors_are_in_the_datas_units_and_those_of_rows_relative_to_its_range():
    held_out = HeldOut(episodes(), LAYOUT, [0, 1], torch.tensor([1.5, 3.0]))
    rows, figures = score(Recorder(off=0.6), held_out, seed=0, checkpoint=1)
    assert figures["validation/action_error/0"] == pytest.approx(0.6, abs=1e-5)
    assert figures["validation/action_error/1"] == pytest.approx(0.6, abs=1e-5)
    assert rows[0].metrics["action_error"] == pytest.approx((0.6 / 1.5 + 0.6 / 3) / 2, abs=1e-5)
    assert rows[0].metrics["energy_score"] == pytest.approx(np.sqrt((0.4**2 + 0.2**2) / 2), abs=1e-5)
    assert figures["validation/energy_score"] == pytest.approx(rows[1].metrics["energy_score"], abs=1e-5)


def test_the_noise_belongs_to_episode_and_place_alone():
    both = HeldOut(episodes(), LAYOUT, [7, 2], torch.ones(2))
    one = HeldOut(episodes((11,)), LAYOUT, [7], torch.ones(2))
    rows, _ = score(Recorder(spread=1.0), both, seed=0, checkpoint=1)
    again, _ = score(Recorder(spread=1.0), one, seed=1, checkpoint=2)
    assert rows[0].metrics == pytest.approx(again[0].metrics)


def test_what_the_observation_explains():
    random = np.random.default_rng(0)
    observation, noise = random.normal(size=(2, 3000, 2))
    ends = np.arange(100, 3001, 100)

    def share(action):
        windows = make_windows(observation, action, ends, Layout(horizon=1, obs_steps=1, action_steps=1))
        half = torch.arange(len(windows)).split(len(windows) // 2)
        return linear_r2(windows[half[0]], windows[half[1]])

    assert share(observation @ [[1.0, 2.0], [0.0, 1.0]]) == pytest.approx(1, abs=1e-3)
    assert share(noise) == pytest.approx(0, abs=0.02)
    assert share(observation + noise) == pytest.approx(0.5, abs=0.05)
    assert share(np.zeros((3000, 2))) is None
